#!/usr/bin/env python3
"""Makes tests/golden/tokenizer: tiny tokenizers of every style, and what the original libraries make of the same texts.

    python3 tools/make_tokenizer_goldens.py        (needs: pip install tokenizers sentencepiece gguf)

texts.json     the texts, a list
NAME.json      a tokenizer.json trained here with Hugging Face's tokenizers
NAME.gguf      a SentencePiece model trained here, as the vocabulary of a GGUF file
NAME.ids       one line a text: the ids that the original library gives, all added tokens being looked for
NAME.out       a list: the text of those ids again; null where it is the text
"""
import json
import pathlib
import random
import tempfile

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/tokenizer"
MARK = "\u2581"

SENTENCES = [
    "A linnet sat on the gate and sang until the rain came over the hill.",
    "She'll say it's theirs, and they've said we're late; I'd wait, but he can't and I'M DONE, YOU'RE NOT.",
    "Zwölf Boxkämpfer fuhren grüßend über die Brücke nach Köln; le garçon naïf mange des crêpes à l’été.",
    "Příliš mnoho žlutých koní běželo přes řeku, łódź płynęła dalej, ve küçük çocuk güldü.",
    "Ο μικρός σπίνος τραγουδά το πρωί στην αυλή, όταν ο ήλιος βγαίνει πίσω από το βουνό.",
    "Маленькая птица сидит на ветке и поёт, а в саду уже цветут яблони; їжак спить під ґанком.",
    "العصفور الصغير يغني فوق الشجرة، والنهر يجري هادئًا بين الحقول ١٢٣.",
    "הציפור הקטנה שרה על הענף, והילדים מקשיבים לה בשקט; שָׁלוֹם לכולם.",
    "छोटी चिड़िया पेड़ पर बैठकर गाती है, और नदी धीरे-धीरे बहती है १२३।",
    "นกตัวเล็กร้องเพลงอยู่บนกิ่งไม้ และแม่น้ำไหลช้าๆ ผ่านทุ่งนา",
    "小鸟在树枝上唱歌，河水慢慢地流过田野。今天是2024年5月。",
    "小さな鳥が枝の上で歌い、川はゆっくりと流れる。カタカナとひらがな、ﾊﾝｶｸ。",
    "작은 새가 가지 위에서 노래하고, 강물은 들판을 천천히 흐른다.",
    "Con chim nhỏ hót trên cành cây, dòng sông chảy chậm qua cánh đồng.",
    "ნიავი ქრის, პატარა ჩიტი მღერის; փոքրիկ թռչունը երգում է; ትንሽ ወፍ ትዘምራለች።",
    "পাখিটি গান গায়, নদী বয়ে যায়; சிறிய பறவை பாடுகிறது; చిన్న పక్షి పాడుతుంది.",
]
CODE = [
    "int main(void) {\n    for (int i = 0; i < 10; ++i)\n\t\tprintf(\"%d\\n\", i * i);\n    return 0;\n}\n",
    "def fold(xs, f=lambda a, b: a + b):\n    acc = xs[0]\n    for x in xs[1:]:\n        acc = f(acc, x)\n    return acc  # done\n",
    "SELECT name, COUNT(*) FROM birds WHERE weight >= 12.5 AND NOT ringed GROUP BY name;",
    "<div class=\"nest\"><a href='https://example.org/a?b=c&d=%20e'>x</a></div>",
    "x != y && a[i]->b::c ||= ~0x1F_FF << 3; // ---- ==== ++++ ....... ???!!!",
]
ODD = [
    "",
    " ",
    "  ",
    "     a",
    "a     ",
    "\n",
    "\n\n\n",
    "\r\n\r\n",
    "a\r\nb\rc\n d \n  e\t\tf",
    " \n \t\n  x",
    "tab\tand\u00a0no-break\u00a0 space, thin\u2009space, wide\u3000space, zero\u200bwidth, line\u2028end, next\u0085line, mvs\u180eend",
    "trailing spaces   \n   leading spaces",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² Ⅷ ٤٥٦ ४५ 1e-9 007",
    "don't DON'T Don'T 'tis '90s rock'n'roll o'clock it\u2019s 'S 'LL 've'd",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f 1\ufe0f\u20e3 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "cafe\u0301 A\u030angstro\u0308m \u1112\u1161\u11ab \u212b \u0958 q\u0307\u0323 \u0344 \ufb01 \u2126",
    "supercalifragilistic" * 6 + "pneumono" * 9,
    "ab" * 300,
    "=" * 97 + " " * 61 + "-" * 33,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u2581\u2581low line\u2581marks \u2581x \u2581",
    "<0x0A> <0xE2> <unk> <pad>",
    "\u0001\u0002\u007f\u0000nul and controls",
    "\U0010ffff\ue000\u0378 unassigned",
    "<|endoftext|>Hello<|im_start|>user\nhi<|im_end|>\n",
    "x <s> y</s><s>z <|eot_id|> <|begin_of_text|>",
    "<s>",
    " <s> a </s>  b",
    "<tool_call>\n{\"name\": \"sing\"}\n</tool_call> <end_of_turn>\n<start_of_turn>model\n",
    "<|end|> mask <mask> maskmask mask. unmask  MASK\tmask",
    "mixed: abcабв漢字かなกขค한글\u05d0\u05d1\u0627\u0628 αβγ é\u00ad\u0301x",
]


def texts():
    rng = random.Random(7)
    joined = " ".join(SENTENCES)
    shuffled = ["".join(rng.choice(joined) for _ in range(120)) for _ in range(3)]
    return ODD + SENTENCES + CODE + ["\n".join(SENTENCES[:6]), "  ".join(CODE)] + shuffled


def corpus():
    """What the tokenizers are trained on: the sentences and their words in other orders, our own all of it."""
    rng = random.Random(3)
    lines = (SENTENCES + CODE) * 3
    for sentence in SENTENCES[:6] * 10:
        words = sentence.split(" ")
        rng.shuffle(words)
        lines.append(" ".join(words))
    lines += ["aa aaa aaaa aaaaaaaa    \n\n\n\t\t ==== ---- 123 2024 supercali pneumono abab"] * 4
    return lines


GPT2_SPECIAL = [AddedToken("<|endoftext|>", special=True, normalized=False)]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def special(*names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def split(regex, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(regex), behavior, invert)


def byte_level(name, parts, added, size=620, normalizer=None, edit=None, post=None, prefix_space=False, use_regex=False):
    t = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex)
    t.pre_tokenizer = pre_tokenizers.Sequence(parts + [last]) if parts else last
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(corpus(), trainer)
    t.add_tokens(added)
    if post:
        t.post_processor = post(t)
    save(name, t, edit)


def with_model(**changes):
    def edit(tree):
        tree["model"].update(changes)
    return edit


def merges_as_text(tree):
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]


def begin(name):
    return lambda t: processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, t.token_to_id(name))])


def characters(name, added, normalizer, pre_tokenizer, decoder, post=None, size=700, fallback=True):
    """BPE of characters with space marks: Llama 2, Gemma. The first ids are <unk> <s> </s> and the bytes."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=200))
    tree = json.loads(t.to_str())
    head = ["<unk>", "<s>", "</s>"] + ([f"<0x{byte:02X}>" for byte in range(256)] if fallback else [])
    learnt = sorted(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    tree["model"]["vocab"] = {piece: i for i, piece in enumerate(head + learnt)}
    tree["model"]["byte_fallback"] = fallback
    tree["pre_tokenizer"] = None
    t = Tokenizer.from_str(json.dumps(tree))
    t.normalizer = normalizer
    if pre_tokenizer:
        t.pre_tokenizer = pre_tokenizer
    t.decoder = decoder
    t.add_tokens(added)
    if post:
        t.post_processor = post(t)
    save(name, t, None)


def save(name, t, edit):
    tree = json.loads(t.to_str())
    if edit:
        edit(tree)
    (FOLDER / f"{name}.json").write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")))
    t = Tokenizer.from_file(str(FOLDER / f"{name}.json"))
    ids = [t.encode(text, add_special_tokens=False).ids for text in texts()]
    full = t.encode(texts()[-1]).ids
    out = [t.decode(each, skip_special_tokens=False) for each in ids]
    save_ids(name, ids + [full], out)


def save_ids(name, ids, out):
    lines = [" ".join(map(str, each)) for each in ids]
    (FOLDER / f"{name}.ids").write_text("\n".join(lines) + "\n")
    changed = [None if text == again else again for text, again in zip(texts(), out)]
    (FOLDER / f"{name}.out").write_text(json.dumps(changed, ensure_ascii=False, separators=(",", ":")))


def sentencepiece_model(name, prefix, fallback, symbols, size=760):
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder) / "corpus"
        text.write_text("\n".join("\n".join(corpus()).split("\n")))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/m", vocab_size=size, model_type="bpe", byte_fallback=fallback,
            character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=prefix,
            remove_extra_whitespaces=False, user_defined_symbols=symbols, minloglevel=2, split_digits=True)
        sp = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")
    kinds, pieces = [], []
    for i in range(len(sp)):
        pieces.append(sp.id_to_piece(i).replace(MARK, " ") if sp.id_to_piece(i) in symbols else sp.id_to_piece(i))
        kinds.append(gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i)
                     else gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.USER_DEFINED
                     if sp.id_to_piece(i) in symbols else gguf.TokenType.NORMAL)
    writer = gguf.GGUFWriter(str(FOLDER / f"{name}.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([sp.get_score(i) for i in range(len(sp))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ids = [sp.encode(text) for text in texts()]
    save_ids(name, ids + [[sp.bos_id()] + ids[-1]], [sp.decode(each) for each in ids])


def longest_pieces(name):
    """RWKV's: every byte, and strings; from left to right always the longest that fits. Byte strings as Python writes them."""
    corpora = "\n".join(corpus()).encode()
    pieces = [bytes([i]) for i in range(256)]
    pieces += sorted({corpora[i:i + n] for n in (2, 3, 5, 9, 17) for i in range(0, len(corpora) - n, 3 * n)} - set(pieces))
    tokens = ["<s>"] + [repr(piece)[2:-1] for piece in pieces]
    writer = gguf.GGUFWriter(str(FOLDER / f"{name}.gguf"), "rwkv7")
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * len(pieces))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    number = {piece: i + 1 for i, piece in enumerate(pieces)}

    def encode(text):
        ids, at = [], 0
        while at < len(text):
            length = max(n for n in range(1, 18) if text[at:at + n] in number)
            ids.append(number[text[at:at + length]])
            at += length
        return ids

    ids = [encode(text.encode()) for text in texts()]
    save_ids(name, ids + [ids[-1]], texts())


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "texts.json").write_text(json.dumps(texts(), ensure_ascii=False, indent=0))
    byte_level("gpt2", [], GPT2_SPECIAL, use_regex=True, edit=merges_as_text)
    byte_level("gpt2-prefix", [], GPT2_SPECIAL, use_regex=True, prefix_space=True)
    byte_level("llama3", [split(LLAMA3)], special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
               edit=with_model(ignore_merges=True), post=begin("<|begin_of_text|>"))
    byte_level("qwen2", [split(QWEN2)],
               special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + [AddedToken("<tool_call>", normalized=False),
                                                                         AddedToken("</tool_call>", normalized=False)],
               normalizer=normalizers.NFC())
    byte_level("smollm", [pre_tokenizers.Digits(individual_digits=True)], GPT2_SPECIAL, use_regex=True)
    byte_level("deepseek", [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")], GPT2_SPECIAL)
    byte_level("odd", [split(r"\w+?x", "merged_with_previous"), split(r"[.,;]|\s$", "merged_with_next"),
                       split(r"\d", "contiguous"), pre_tokenizers.Punctuation("isolated"), split(r"\S+|\s", "isolated", True),
                       split("\u200b|\u00ad", "removed")],
               [AddedToken("<mask>", lstrip=True, rstrip=True, special=True, normalized=False),
                AddedToken("mask", single_word=True, normalized=True), AddedToken("<|end|>", rstrip=True, normalized=True),
                AddedToken("<|endoftext|>", lstrip=True)], normalizer=normalizers.Strip(left=True, right=True))
    marks = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    llama2_decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
                                        decoders.Strip(content=" ", left=1)])
    characters("llama2", special("<unk>", "<s>", "</s>"), marks, None, llama2_decoder, begin("<s>"))
    characters("llama2-old", [AddedToken("<unk>", special=True, normalized=True), AddedToken("<s>", special=True, normalized=True),
                              AddedToken("</s>", special=True, normalized=True)], marks, None, llama2_decoder)
    characters("metaspace", special("<unk>", "<s>", "</s>"), None,
               pre_tokenizers.Metaspace(prepend_scheme="first", split=False), llama2_decoder)
    characters("metaspace-unknown", special("<unk>", "<s>", "</s>"), None, pre_tokenizers.Metaspace(prepend_scheme="always"),
               decoders.Metaspace(prepend_scheme="always"), fallback=False)
    runs = [AddedToken(text * count, normalized=False) for text in ("\n", MARK) for count in range(2, 6)]
    characters("gemma", special("<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>") + runs,
               normalizers.Replace(" ", MARK), pre_tokenizers.Split(" ", "merged_with_previous"),
               decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]))
    sentencepiece_model("sentencepiece", True, True, [])
    sentencepiece_model("sentencepiece-symbols", False, True, ["<tool_call>", "</tool_call>", "\n\n", MARK * 4])
    sentencepiece_model("sentencepiece-unknown", True, False, [], size=520)
    longest_pieces("longest")


main()
