"""The C interface of Linnet, as ctypes sees it: one declaration for each function and structure of include/linnet/."""
import ctypes
import ctypes.util
import os
import pathlib
from ctypes import POINTER, Structure, c_bool, c_char, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p

OK, FULL, INTERRUPTED = 0, -6, -7
TYPE_AUTO = -1
TOKENIZE_SPECIAL, TOKENIZE_BEGIN = 1, 2


class ContextSettings(Structure):
    _fields_ = [("size", c_size_t), ("threads", c_int), ("cpu", c_char_p), ("memory_limit", c_uint64), ("allocate", c_void_p),
                ("release", c_void_p), ("log", c_void_p), ("progress", c_void_p), ("user", c_void_p)]


class ModelInfo(Structure):
    _fields_ = [("size", c_size_t), ("architecture", c_char_p), ("name", c_char_p)] + [
        (name, c_int64) for name in ("layers", "width", "heads", "key_value_heads", "key_size", "value_size", "vocabulary",
                                     "context_length", "window", "window_layers")] + [
        (name, c_uint64) for name in ("parameters", "weight_bytes", "resident_bytes")] + [
        ("attention_layers", c_int64), ("state_bytes", c_uint64), ("experts", c_int64), ("experts_used", c_int64)]


class SessionSettings(Structure):
    _fields_ = [("size", c_size_t), ("context", c_int64), ("memory", c_uint64), ("precision", c_int), ("piece", c_int64),
                ("compute", c_int), ("activations", c_uint64), ("policy", c_char_p), ("cache", c_uint64), ("folder", c_char_p),
                ("draft", c_void_p), ("snapshots", c_int64), ("snapshot_interval", c_int64),
                ("state_reference", c_int64), ("state_growth", c_double), ("state_limit", c_double), ("device", c_char_p)]


class Plan(Structure):
    _fields_ = [("size", c_size_t), ("context", c_int64), ("piece", c_int64), ("page_tokens", c_int64), ("feed_forward", c_int64),
                ("slice", c_int64), ("step", c_int64), ("precision", c_int)] + [
        (name, c_uint64) for name in ("weights_mapped", "model", "pages", "workspace", "overhead", "total", "smallest",
                                      "smallest_workspace", "bytes_per_token", "cache", "draft")] + [
        ("policy", c_char * 256), ("reason", c_char * 256), ("states", c_uint64), ("device", c_char * 96)]


class Usage(Structure):
    _fields_ = [("size", c_size_t), ("pages", c_uint64), ("pages_peak", c_uint64), ("file", c_uint64), ("kept", c_int64),
                ("evicted", c_int64), ("states", c_uint64)]


class SamplerSettings(Structure):
    _fields_ = [("size", c_size_t), ("temperature", c_float), ("top_k", c_int32), ("top_p", c_float), ("min_p", c_float),
                ("repeat_penalty", c_float), ("repeat_last", c_int32), ("seed", c_uint64)]


class Message(Structure):
    _fields_ = [("role", c_char_p), ("content", c_char_p)]


TAKE_LOGITS = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64, c_int64, POINTER(c_float))

_HANDLE, _OUT, _IDS = c_void_p, POINTER(c_void_p), POINTER(c_int32)
_FUNCTIONS = {
    "version": (c_char_p,),
    "type_name": (c_char_p, c_int),
    "type_of_name": (c_int, c_char_p),
    "status_name": (c_char_p, c_int),
    "context_settings_default": (ContextSettings,),
    "context_open": (c_int, POINTER(ContextSettings), _OUT),
    "context_close": (None, _HANDLE),
    "last_error": (c_char_p, _HANDLE),
    "memory_used": (c_uint64, _HANDLE),
    "memory_peak": (c_uint64, _HANDLE),
    "threads": (c_int, _HANDLE),
    "cpu": (c_char_p, _HANDLE),
    "model_open": (c_int, _HANDLE, c_char_p, _OUT),
    "model_close": (None, _HANDLE),
    "model_describe": (ModelInfo, _HANDLE),
    "model_tokenizer": (_HANDLE, _HANDLE),
    "tokenizer_open": (c_int, _HANDLE, c_char_p, _OUT),
    "tokenizer_close": (None, _HANDLE),
    "tokenizer_size": (c_int64, _HANDLE),
    "tokenize": (c_int, _HANDLE, c_char_p, c_size_t, c_int, _IDS, c_int64, POINTER(c_int64)),
    "token_bytes": (c_void_p, _HANDLE, c_int32, POINTER(c_size_t)),
    "token_is_special": (c_bool, _HANDLE, c_int32),
    "token_is_end": (c_bool, _HANDLE, c_int32),
    "decoder_open": (c_int, _HANDLE, c_bool, _OUT),
    "decoder_close": (None, _HANDLE),
    "decode": (c_int, _HANDLE, c_int32, POINTER(c_void_p), POINTER(c_size_t)),
    "decode_end": (c_int, _HANDLE, POINTER(c_void_p), POINTER(c_size_t)),
    "chat_format": (c_int, _HANDLE, POINTER(Message), c_int64, c_bool, c_char_p, c_size_t, POINTER(c_size_t)),
    "session_settings_default": (SessionSettings,),
    "plan_session": (c_int, _HANDLE, POINTER(SessionSettings), POINTER(Plan)),
    "session_open": (c_int, _HANDLE, POINTER(SessionSettings), _OUT),
    "session_close": (None, _HANDLE),
    "session_plan": (Plan, _HANDLE),
    "session_usage": (Usage, _HANDLE),
    "policy_name": (c_char_p, c_int),
    "policy_about": (c_char_p, c_int),
    "session_feed": (c_int, _HANDLE, _IDS, c_int64),
    "session_feed_logits": (c_int, _HANDLE, _IDS, c_int64, TAKE_LOGITS, c_void_p),
    "session_logits": (POINTER(c_float), _HANDLE),
    "session_position": (c_int64, _HANDLE),
    "session_tokens": (_IDS, _HANDLE),
    "session_rewind": (c_int, _HANDLE, c_int64),
    "session_mark": (None, _HANDLE),
    "session_rewind_point": (c_int64, _HANDLE, c_int64),
    "session_rewind_limit": (c_int64, _HANDLE),
    "session_fork": (c_int, _HANDLE, _OUT),
    "session_save": (c_int, _HANDLE, c_char_p),
    "session_load": (c_int, _HANDLE, c_char_p),
    "sampler_settings_default": (SamplerSettings,),
    "sampler_open": (c_int, _HANDLE, POINTER(SamplerSettings), _OUT),
    "sampler_close": (None, _HANDLE),
    "sample": (c_int, _HANDLE, _HANDLE, POINTER(c_int32)),
}


def _candidates():
    chosen = os.environ.get("LINNET_LIBRARY")
    if chosen:
        yield chosen
        return
    yield from sorted(str(path) for path in pathlib.Path(__file__).parent.glob("liblinnet.so*"))
    found = ctypes.util.find_library("linnet")
    if found:
        yield found
    yield "liblinnet.so.0"


class _Library:
    """linnet_NAME is the attribute NAME."""

    def __init__(self):
        refused = []
        for path in _candidates():
            try:
                library = ctypes.CDLL(path)
                break
            except OSError as error:
                refused.append(str(error))
        else:
            raise ImportError("liblinnet.so was not found; install it, or name it in LINNET_LIBRARY (" + "; ".join(refused) + ")")
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(library, "linnet_" + name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


library = _Library()
