#!/usr/bin/env python3
"""Makes tests/golden/chat_templates.json: templates in the styles of well-known models, and what jinja2 makes of them.

    python3 tools/make_chat_goldens.py        (needs: pip install jinja2)

A list of {"template", "cases": [{"messages", "add_generation_prompt", "text" or "error"}]}, rendered with the settings of
transformers. All templates were written for this file.
"""
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/chat_templates.json"


def message(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "Hello there")],
    [message("system", "You are terse."), message("user", "  Who sings?  ")],
    [message("user", "one\ntwo"), message("assistant", "three"), message("user", "four 'quoted' \"twice\" <b>")],
    [message("system", " Sing. "), message("user", "Naïve café 鳥?"), message("assistant", "<think>\nhm\n</think>\n\nYes.\n"),
     message("user", "Again"), message("assistant", "No")],
    [message("user", "a"), message("user", "b")],
    [],
]

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML_DEFAULT = """{%- if messages and messages[0]['role'] == 'system' %}
    {%- set start = messages[0].content %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set start = 'Be kind.' %}
    {%- set rest = messages %}
{%- endif %}
<|im_start|>system
{{ start | trim }}<|im_end|>
{% for m in rest %}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

LLAMA2 = """{% if messages and messages[0]['role'] == 'system' %}{% set system = messages[0]['content'].strip() %}{% set turns = messages[1:] %}{% else %}{% set system = false %}{% set turns = messages %}{% endif %}
{%- for message in turns -%}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant must take turns, not ' ~ message.role) }}{% endif %}
{%- if loop.index0 == 0 and system is not false -%}
    {%- set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] -%}
{%- else -%}
    {%- set content = message['content'] -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}
    {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' -%}
    {{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

LLAMA3 = """{{- bos_token }}
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LLAMA3_DATE = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message comes first, where there is one. #}
{%- if messages|length > 0 and messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: " }}{{ tools | tojson(indent=4) }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- tool_call.name + "(" }}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}{%- if not loop.last %}, {% endif %}
        {%- endfor %}
        {{- ")" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

GEMMA = """{{ bos_token }}{% if messages and messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("what is that content?") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

PHI3 = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

MISTRAL = """{%- if messages and messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {%- if message["content"] is defined and message["content"]|length > 0 %}{{- " " + message["content"]|trim + eos_token}}{% endif %}
    {%- endif %}
{%- endfor %}
{{- "|" ~ user_messages|length ~ "|" ~ (user_messages | map(attribute='content') | join(', ')) }}
"""

QWEN3 = """{%- macro shown(content) -%}
    {%- if content is string -%}{{- content -}}{%- else -%}{{- content | tojson -}}{%- endif -%}
{%- endmacro -%}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages and messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = shown(message.content) %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

FLEDGLING = """{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""

GENERATION = """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}[{{ m.role | upper }}: {{ m.content }}]{% endif %}
{% else %}nobody{% endfor %}
"""

# One feature a line, more or less.
FEATURES = [
    "{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 1.5 + 1 }}",
    "{{ 10 / 5 }} {{ 1e3 }} {{ 0.1 + 0.2 }} {{ 1e22 }} {{ 1.0e-7 }} {{ 123456789.125 }} {{ 5 // 2.0 }} {{ -5 % 3.5 }} {{ 1_000 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x'] }} {{ 'ab' * 3 }} {{ [1] + [2, 3] }} {{ [0] * 3 }} {{ 'it''s' }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 1 }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1} }}",
    "{{ 'a' in 'abc' }} {{ 2 not in [1, 3] }} {{ 'k' in {'k': 0} }} {{ not true or true }} {{ not (true or true) }} {{ 0 or 'x' }} {{ '' and 'y' }}|",
    "{{ 'x' if true else 'y' }} {{ 'x' if false }}| {{ ('a' if 0 else 'b') ~ 'c' }} {{ 1 if 1 else 2 if 0 else 3 }}",
    "{{ missing }}| {{ missing is defined }} {{ missing is not defined }} {{ missing | default('d') }} {{ '' | default('e', true) }} {{ none | d('f') }} {{ missing == none }} {{ missing | length }}",
    "{{ none is none }} {{ 1 is number }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is sequence }} {{ 'a' is iterable }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ true is boolean }} {{ 1 is boolean }} {{ 1.0 is float }} {{ 1 is integer }} {{ true is integer }} {{ 2 is in [1, 2] }} {{ 3 is not in [1, 2] }} {{ 1 is eq 1 }} {{ 2 is gt(1) }}",
    "{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'aab'.lstrip('a') }}|{{ 'baa'.rstrip('a') }}|{{ '  a ' | trim }}|{{ 'Ab' | upper }}|{{ 'Ab' | lower }}|{{ 'the old man' | title }}|{{ \"it's old-time\".title() }}|{{ 'ABC d' | capitalize }}",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b c '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b  c d'.split(none, 2) }} {{ 'abc'.split('x') }} {{ 'a\nb\r\nc'.splitlines() }}",
    "{{ 'hello'.startswith('he') }} {{ 'hello'.endswith(('x', 'lo')) }} {{ 'hello'.replace('l', 'L') }} {{ 'hello'.replace('l', 'L', 1) }} {{ 'aXbX' | replace('X', '-') }} {{ 'hello'.find('l') }} {{ 'hello'.count('l') }} {{ '12'.isdigit() }}",
    "{{ [1, 2, 3][0] }} {{ [1, 2, 3][-1] }} {{ [1, 2, 3][1:] }} {{ [1, 2, 3][:-1] }} {{ [1, 2, 3][::-1] }} {{ 'hello'[1] }} {{ 'hello'[::-1] }} {{ 'naïve鳥'[-3:] }} {{ 'abc'[5:] }}| {{ [1, 2, 3][-9:2] }} {{ [1,2,3,4,5][4:0:-2] }} {{ [1][3] }}|",
    "{{ {'a': 1, 'b': [1, {'c': none}]} }} {{ {'a': 1}.a }} {{ {'a': 1}['b'] }}| {{ {'a': 1}.get('b', 5) }} {{ {'a': 1, 'b': 2}.keys() | list }} {{ {'a': 1, 'b': 2}.values() | list }} {% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | sort(reverse=true) }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ [1, 2] | join('-') }} {{ 'abc' | list }} {{ [1, 2, 3] | reverse | list }} {{ [1, 1, 2] | unique | list }} {{ 'ab' | reverse }} {{ ', '.join(['a', 'b']) }}",
    "{{ {'a': [1, 2.5, none, true], 'b': 'q\"\\\\\\n\\t\\u00e9\\x01', 'c': {}, 'd': []} | tojson }} {{ {'a': [1, {'x': 'y'}], 'c': {}} | tojson(indent=2) }} {{ 'a<b>&\\'' | tojson }}",
    "{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [1, 2, 3] | reject('odd') | list }} {{ [1, 2, 3] | map('string') | join('+') }} {{ ['a', 'b'] | map('upper') | list }}",
    "{{ [{'n': 1, 'm': 'a'}, {'n': 2}] | map(attribute='m', default='?') | list }} {{ [{'n': 1}, {'n': 2}] | selectattr('n', 'gt', 1) | list }} {{ [{'n': 0}, {'n': 2}] | selectattr('n') | list }} {{ [{'n': 0}, {'n': 2}] | rejectattr('n', 'equalto', 2) | list }}",
    "{{ none | selectattr('x') | list }} {{ none | map('upper') | list }} {{ 'a{}b{}'.format(1, 'x') }} {{ '{1}{0}{n}{{}}'.format(1, 2, n=3) }}",
    "{{ '5' | int + 1 }} {{ 'x' | int }} {{ '2.5' | float }} {{ 2.7 | int }} {{ -3 | abs }} {{ 5 | string + 'a' }} {{ 2.567 | round(1) }} {{ 'a<b' | escape }} {{ 'a<b' | safe }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}",
    "{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{{ loop.previtem }}{{ loop.nextitem }} {{ loop.revindex }}{{ loop.first }};{% endfor %}",
    "{% for i in range(6) if i is even %}{{ i }}{{ loop.index }}{% else %}none{% endfor %} {% for i in [] %}{% else %}empty{% endfor %} {% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for c in 'añ' %}[{{ c }}]{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }} {% set ns = namespace(x=1, y='a') %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }} {% if true %}{% set z = 5 %}{% endif %}{{ z }}",
    "{% set a, b = 1, 'two' %}{{ a }}{{ b }} {% set c %}block {{ a }}{% endset %}[{{ c }}] {% set d | upper %}shout{% endset %}{{ d }}",
    "{% macro greet(name, mark='!') %}Hi {{ name }}{{ mark }}{% endmacro %}{{ greet('A') }} {{ greet('B', mark='?') }} {{ greet(name='C') | upper }} {{ greet() }}",
    "{% macro depth(n) %}{{ n }}{% if n > 0 %}{{ depth(n - 1) }}{% endif %}{% endmacro %}{{ depth(5) }}",
    "a  {%- if true -%}  b  {%- endif -%}  c {{- ' d ' -}} e",
    "line\n   {% if true %}\n  kept\n   {% endif %}\nend\n",
    "   {%+ if true %}x{% endif +%}\n y {# comment #}\nz{#- strip -#}  w",
    "{% raw %}{{ not }} {% this %}{% endraw %} {{ '{{' }} {{ '}}' }} {{ \"%}\" }} {{ {'a': {'b': 1}} }}",
    "{{ '\\n'.join(['a', 'b']) }} {{ 'tab\\there' }} {{ '\\u00e9\\x41' }} {{ \"dq 'sq'\" }} {{ ['it\\'s', 'a\"b', 'both\\'\"', '\\n'] }}",
    "{{ messages | length }} {{ messages | map(attribute='role') | join(',') }} {{ (messages | first).role if messages }} {{ messages[-1]['content'] | trim if messages else 'none' }}",
    "{% for m in messages %}{% if m.role in ['user', 'system'] and m['content'] is string %}{{ m.role[0] | upper }}{% elif m.role == 'assistant' %}A{% else %}?{% endif %}{% endfor %}",
    "{{ messages[0] if messages }} {{ (messages[0]['nothing'] is defined) if messages }} {{ messages[0].items() | length if messages }}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ tools is none }}",
    "{{ 1 }}\n{% if false %}\n{% elif true %}\nyes\n{% else %}\nno\n{% endif %}\n\nlast\n\n",
    "{{ not messages }} {{ messages is iterable }} {{ -2 | abs }} {{ - 2 }} {{ +3 }} {{ 2 - -2 }} {{ (1, 2) | length }} {{ [1, 2,] }} {{ [] | first is defined }}",
    "{{ undefined_thing.attribute }}",
    "{{ 1 / 0 }}",
    "{{ 'a' + 1 }}",
    "{{ [1, 2].append(3) }}",
    "{{ raise_exception('no: ' ~ messages | length) }}",
    "{{ nothing() }}",
    "{{ 'a' | nothing }}",
    "{% nothing %}",
    "{% if %}",
    "{% for x in 5 %}{% endfor %}",
    "{{ 'open }}",
    "{% if true %}",
]

TEMPLATES = [CHATML, CHATML_DEFAULT, LLAMA2, LLAMA3, LLAMA3_DATE, GEMMA, GEMMA3, PHI3, MISTRAL, QWEN3, FLEDGLING, GENERATION]


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Refused(Exception):
    pass


def environment():
    def raise_exception(text):
        raise Refused(text)

    def to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[jinja2.ext.loopcontrols, Generation])
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    return env


def render(template, messages, prompt):
    case = {"messages": messages, "add_generation_prompt": prompt}
    try:
        case["text"] = environment().from_string(template).render(
            messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", tools=None, documents=None)
    except Refused as reason:
        case["error"] = str(reason)
    except Exception:
        case["error"] = ""
    return case


def main():
    out = []
    for template in TEMPLATES:
        out.append({"template": template,
                    "cases": [render(template, c, prompt) for c in CONVERSATIONS for prompt in (False, True)]})
    for template in FEATURES:
        out.append({"template": template, "cases": [render(template, c, True) for c in CONVERSATIONS[1:6:4]]})
    OUT.write_text(json.dumps(out, ensure_ascii=False, indent=0))


main()
