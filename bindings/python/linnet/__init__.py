"""Linnet: long-context language models in linear time and bounded memory.

    model = linnet.Model("model.gguf")
    session = model.session(context=8192, memory=64 << 20)
    session.feed(model.tokenizer.encode("Once upon a time"))
    print("".join(session.generate(64)))

A model and all that was made from it is used by one thread at a time. Token ids and logits are NumPy arrays, int32 and float32."""
import codecs
import ctypes
import os

import numpy

from . import _library
from ._library import library as _c

__all__ = ["Error", "Model", "Session", "Tokenizer", "policies", "version"]


class Error(Exception):
    """What the library said; `status` is the name of its status ("memory", "format", ...)."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = _c.status_name(status).decode()


def version():
    return _c.version().decode()


def _ids(ids):
    array = numpy.ascontiguousarray(ids, dtype=numpy.int32)
    if array.ndim != 1:
        raise ValueError("token ids must be one row")
    return array, array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


class _Context:
    def __init__(self, threads, cpu, memory_limit):
        settings = _c.context_settings_default()
        settings.threads, settings.memory_limit = threads, memory_limit
        settings.cpu = cpu.encode() if cpu else None
        self.handle = ctypes.c_void_p()
        status = _c.context_open(settings, self.handle)
        if status != _library.OK:
            text = _c.last_error(self.handle).decode()
            _c.context_close(self.handle)
            self.handle = None
            raise Error(status, text)

    def check(self, status):
        if status != _library.OK:
            raise Error(status, _c.last_error(self.handle).decode(errors="replace"))

    def __del__(self):
        if getattr(self, "handle", None):
            _c.context_close(self.handle)


class Tokenizer:
    """Text to token ids and back. path: a GGUF file, a Hugging Face folder or a tokenizer.json."""

    def __init__(self, path=None, *, _model=None):
        # Whoever uses a handle keeps what it hangs on alive.
        self._owner = _model
        self._context = _model._context if _model else _Context(1, None, 0)
        self._own = _model is None
        if _model:
            self._handle = _c.model_tokenizer(_model._handle)
            if not self._handle:
                raise Error(-5, _c.last_error(self._context.handle).decode())
        else:
            handle = ctypes.c_void_p()
            self._context.check(_c.tokenizer_open(self._context.handle, os.fsencode(path), handle))
            self._handle = handle.value

    def __del__(self):
        if getattr(self, "_own", False) and getattr(self, "_handle", None):
            _c.tokenizer_close(self._handle)

    def __len__(self):
        return _c.tokenizer_size(self._handle)

    def encode(self, text, *, special=False, begin=False):
        """The ids of a str or bytes. special: text that spells a special token becomes it; begin: the begin token is put first
        where the model's rules ask for it."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        flags = (_library.TOKENIZE_SPECIAL if special else 0) | (_library.TOKENIZE_BEGIN if begin else 0)
        count, room = ctypes.c_int64(), len(data) + 8
        while True:
            ids = numpy.empty(room, dtype=numpy.int32)
            self._context.check(_c.tokenize(self._handle, data, len(data), flags, _ids(ids)[1], room, count))
            if count.value <= room:
                return ids[: count.value].copy()
            room = count.value

    def decode_bytes(self, ids, *, special=False):
        """The bytes that the ids stand for. special: special tokens are written out."""
        decoder = _Decoder(self, special)
        return b"".join(decoder.push(int(token)) for token in ids) + decoder.end()

    def decode(self, ids, *, special=False):
        return self.decode_bytes(ids, special=special).decode(errors="replace")

    def is_end(self, token):
        return _c.token_is_end(self._handle, token)

    def chat(self, messages, *, answer=True):
        """The messages, dicts with role and content, in the form of the model's chat template. answer: ready to be answered."""
        array = (_library.Message * len(messages))()
        for entry, message in zip(array, messages):
            entry.role, entry.content = message["role"].encode(), message["content"].encode()
        size = ctypes.c_size_t()
        self._context.check(_c.chat_format(self._handle, array, len(messages), answer, None, 0, size))
        text = ctypes.create_string_buffer(size.value)
        self._context.check(_c.chat_format(self._handle, array, len(messages), answer, text, size.value, size))
        return text.raw.decode(errors="replace")


class _Decoder:
    def __init__(self, tokenizer, special):
        self._tokenizer, handle = tokenizer, ctypes.c_void_p()
        tokenizer._context.check(_c.decoder_open(tokenizer._handle, special, handle))
        self._handle = handle.value

    def _take(self, function, *arguments):
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._tokenizer._context.check(function(self._handle, *arguments, text, size))
        return ctypes.string_at(text, size.value) if size.value else b""

    def push(self, token):
        return self._take(_c.decode, token)

    def end(self):
        return self._take(_c.decode_end)

    def __del__(self):
        if getattr(self, "_handle", None):
            _c.decoder_close(self._handle)


class Model:
    """A GGUF file or a Hugging Face folder, mapped. threads 0: all that the process may use; memory_limit: bytes the library may
    have allocated at any one time, 0: no limit."""

    def __init__(self, path, *, threads=0, cpu=None, memory_limit=0):
        self._context = _Context(threads, cpu, memory_limit)
        handle = ctypes.c_void_p()
        self._context.check(_c.model_open(self._context.handle, os.fsencode(path), handle))
        self._handle = handle.value
        info = _c.model_describe(self._handle)
        for name, _ in info._fields_[1:]:
            value = getattr(info, name)
            setattr(self, name, value.decode() if isinstance(value, bytes) else value)

    def __del__(self):
        if getattr(self, "_handle", None):
            _c.model_close(self._handle)

    @property
    def tokenizer(self):
        return Tokenizer(_model=self)

    @property
    def memory_peak(self):
        """The most bytes that were allocated at any time."""
        return _c.memory_peak(self._context.handle)

    def _settings(self, context, memory, precision, piece, exact, activations, policy, cache, folder, snapshots,
                  device):
        settings = _c.session_settings_default()
        settings.context, settings.memory, settings.piece, settings.compute = context, memory, piece, int(exact)
        settings.activations, settings.cache, settings.snapshots = activations, cache, snapshots
        settings.policy, settings.folder = policy and policy.encode(), folder and os.fsencode(folder)
        settings.device = device and device.encode()
        settings.precision = _c.type_of_name(precision.encode()) if precision else _library.TYPE_AUTO
        if precision and settings.precision == _library.TYPE_AUTO:
            raise ValueError(f"there is no precision {precision}")
        return settings

    def plan(self, context=0, *, memory=0, precision=None, piece=0, exact=False, activations=0, policy=None, cache=0, folder=None,
             snapshots=0, device=None):
        """What a session with these settings would take, as a dict of bytes, before anything is allocated."""
        plan = _library.Plan(size=ctypes.sizeof(_library.Plan))
        settings = self._settings(context, memory, precision, piece, exact, activations, policy, cache, folder, snapshots,
                                  device)
        self._context.check(_c.plan_session(self._handle, settings, plan))
        return _plan_dict(plan)

    def session(self, context=0, *, memory=0, precision=None, piece=0, exact=False, activations=0, policy=None, cache=0, folder=None,
                snapshots=0, device=None):
        """A session with room for `context` tokens (0: the model's trained length) in `memory` bytes (0: no bound). precision of
        keys and values: "f32", "bf16", "f16", "q8_0", "q4_0", or None for the best that fits. exact: activations stay float32.
        activations: bytes that these and scratch may take, however long the prompt (0: no bound of their own). policy: what is kept of
        keys and values, "NAME[:key=value,...]" of policies(). cache: bytes that they may take. folder: for a policy's file.
        snapshots: earlier recurrent states that are kept, so that rewind can go back to them. device: None or "cpu", "cuda" for a
        GPU (docs/devices.md), "auto"."""
        handle = ctypes.c_void_p()
        settings = self._settings(context, memory, precision, piece, exact, activations, policy, cache, folder, snapshots,
                                  device)
        self._context.check(_c.session_open(self._handle, settings, handle))
        return Session(self, handle.value)


def policies():
    """The names of policies and what each does."""
    found, index = {}, 0
    while (name := _c.policy_name(index)) is not None:
        found[name.decode()] = _c.policy_about(index).decode()
        index += 1
    return found


def _plan_dict(plan):
    values = {name: getattr(plan, name) for name, _ in plan._fields_[1:]}
    values["precision"] = _c.type_name(plan.precision).decode()
    for name in ("policy", "reason", "device"):
        values[name] = getattr(plan, name).decode()
    return values


class Session:
    """One sequence of tokens and its memory; made by Model.session."""

    def __init__(self, model, handle):
        self._model, self._context, self._handle = model, model._context, handle

    def __del__(self):
        if getattr(self, "_handle", None):
            _c.session_close(self._handle)

    def __len__(self):
        return _c.session_position(self._handle)

    @property
    def plan(self):
        return _plan_dict(_c.session_plan(self._handle))

    @property
    def usage(self):
        """What the memory takes and holds now: bytes of pages, their peak and those in a file; tokens kept and evicted;
        bytes of recurrent states."""
        usage = _c.session_usage(self._handle)
        return {name: getattr(usage, name) for name, _ in usage._fields_[1:]}

    @property
    def tokens(self):
        """The ids held."""
        if not len(self):
            return numpy.empty(0, dtype=numpy.int32)
        return numpy.ctypeslib.as_array(_c.session_tokens(self._handle), (len(self),)).copy()

    @property
    def logits(self):
        """Logits [vocabulary] of what follows the last token; None before the first and after a rewind."""
        pointer = _c.session_logits(self._handle)
        return numpy.ctypeslib.as_array(pointer, (self._model.vocabulary,)).copy() if pointer else None

    def feed(self, ids):
        """Appends tokens and returns the logits [vocabulary] of what follows them."""
        array, pointer = _ids(ids)
        self._context.check(_c.session_feed(self._handle, pointer, len(array)))
        return self.logits

    def feed_logits(self, ids):
        """Appends tokens and returns the logits [tokens, vocabulary] after each."""
        array, pointer = _ids(ids)
        rows = numpy.empty((len(array), self._model.vocabulary), dtype=numpy.float32)

        def take(_, first, count, logits):
            rows[first : first + count] = numpy.ctypeslib.as_array(logits, (count, self._model.vocabulary))
            return _library.OK

        self._context.check(_c.session_feed_logits(self._handle, pointer, len(array), _library.TAKE_LOGITS(take), None))
        return rows

    def generate(self, tokens, *, seed=0, **sampling):
        """Yields the text of at most `tokens` further tokens as it comes, in whole characters, up to the model's end token.
        sampling: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last; temperature 0 is greedy."""
        settings, sampler = _c.sampler_settings_default(), ctypes.c_void_p()
        settings.seed = seed
        for name, value in sampling.items():
            if name not in dict(settings._fields_):
                raise TypeError(f"there is no sampling setting {name}")
            setattr(settings, name, value)
        self._context.check(_c.sampler_open(self._model._handle, settings, sampler))
        tokenizer, token = self._model.tokenizer, ctypes.c_int32()
        decoder, text = _Decoder(tokenizer, False), codecs.getincrementaldecoder("utf-8")("replace")
        try:
            for count in range(1, tokens + 1):
                self._context.check(_c.sample(sampler, self._handle, token))
                if tokenizer.is_end(token.value):
                    break
                piece = text.decode(decoder.push(token.value))
                if piece:
                    yield piece
                if count < tokens:
                    self.feed([token.value])
            rest = text.decode(decoder.end(), final=True)
            if rest:
                yield rest
        finally:
            _c.sampler_close(sampler)

    def rewind(self, position):
        """Forgets all tokens from `position` on."""
        self._context.check(_c.session_rewind(self._handle, position))

    def mark(self):
        """Keeps a snapshot of recurrent states here, in a session with snapshots=N."""
        _c.session_mark(self._handle)

    def rewind_point(self, position):
        """The last position up to `position` that rewind can go back to: all of it, where every layer attends."""
        return _c.session_rewind_point(self._handle, position)

    def fork(self):
        """A second session that goes on from the same tokens."""
        handle = ctypes.c_void_p()
        self._context.check(_c.session_fork(self._handle, handle))
        return Session(self._model, handle.value)

    def save(self, path):
        self._context.check(_c.session_save(self._handle, os.fsencode(path)))

    def load(self, path):
        self._context.check(_c.session_load(self._handle, os.fsencode(path)))
