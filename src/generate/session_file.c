/* Owns: the session's part of a session file: which model, which tokens, the logits after them; then the memory writes
 * its own.
 *
 * A reader has checked the whole file before it gives out the first byte (memory/state_file.h), and the memory changes
 * nothing until its part fits, so a session is replaced as a whole or not at all. Only where somebody writes into the
 * file while it is read (saving never does) the session is left empty, and says so. */
#include <string.h>

#include "generate/session.h"

static const char magic[8] = "SESSION1";

static linnet_status save(const linnet_session *session, const ln_memory *memory, const char *path) {
    ln_state_writer writer;
    linnet_status status = ln_memory_check_write(memory);
    if (status == LINNET_OK) status = ln_state_create(session->model->context, path, &writer);
    if (status != LINNET_OK) return status;
    const int64_t vocabulary = session->model->hyper.vocabulary;
    ln_state_put(&writer, magic, sizeof magic);
    ln_state_put_i64(&writer, (int64_t)session->model->fingerprint);
    ln_state_put_i64(&writer, vocabulary);
    ln_state_put_i64(&writer, session->position);
    ln_state_put_i64(&writer, session->has_logits);
    ln_state_put(&writer, session->tokens, (uint64_t)session->position * sizeof *session->tokens);
    if (session->has_logits) ln_state_put(&writer, session->logits, (uint64_t)vocabulary * sizeof *session->logits);
    status = ln_memory_write(memory, &writer);
    const linnet_status finished = ln_state_finish(&writer, status == LINNET_OK);
    return status == LINNET_OK ? finished : status;
}

linnet_status linnet_session_save(linnet_session *session, const char *path) {
    if (!session->device) return save(session, session->memory, path);
    ln_memory *memory;
    linnet_status status = ln_device_session_memory(session, true, &memory);
    if (status != LINNET_OK) return status;
    status = save(session, memory, path);
    ln_memory_close(memory);
    return status;
}

typedef struct saved {
    int64_t fingerprint, vocabulary, position, has_logits;
    ln_state_reader tokens; /* where they begin, then the logits */
} saved;

static linnet_status ends(const linnet_session *session, const ln_state_reader *reader) {
    return ln_fail(session->model->context, LINNET_ERROR_FORMAT, "%s ends before the tokens it announces",
                   reader->path);
}

static linnet_status read_header(linnet_session *session, ln_state_reader *reader, saved *s) {
    linnet_context *context = session->model->context;
    char found[sizeof magic];
    if (!ln_state_take(reader, found, sizeof found) || memcmp(found, magic, sizeof magic) != 0 ||
        !ln_state_take_i64(reader, &s->fingerprint) || !ln_state_take_i64(reader, &s->vocabulary) ||
        !ln_state_take_i64(reader, &s->position) || !ln_state_take_i64(reader, &s->has_logits))
        return ln_fail(context, LINNET_ERROR_FORMAT, "%s is no session file of this version", reader->path);
    if ((uint64_t)s->fingerprint != session->model->fingerprint || s->vocabulary != session->model->hyper.vocabulary)
        return ln_fail(context, LINNET_ERROR_FORMAT,
                       "%s was saved with another model or other weights; load it with that model", reader->path);
    if (s->has_logits != 0 && s->has_logits != 1)
        return ln_fail(context, LINNET_ERROR_FORMAT, "%s contradicts itself on its logits", reader->path);
    if (s->position < 0 || s->position > session->plan.context)
        return ln_fail(context, LINNET_ERROR_FULL, "%s holds %lld tokens; this session has room for %lld", reader->path,
                       (long long)s->position, (long long)session->plan.context);
    s->tokens = *reader;
    for (int64_t i = 0; i < s->position; i++) {
        int32_t id;
        if (!ln_state_take(reader, &id, sizeof id)) return ends(session, reader);
        if (id < 0 || id >= s->vocabulary)
            return ln_fail(context, LINNET_ERROR_FORMAT, "%s has a token outside the vocabulary", reader->path);
    }
    if (s->has_logits && !ln_state_take(reader, NULL, (uint64_t)s->vocabulary * sizeof *session->logits))
        return ends(session, reader);
    return LINNET_OK;
}

static bool take_tokens(linnet_session *session, saved *s) {
    if (!ln_state_take(&s->tokens, session->tokens, (uint64_t)s->position * sizeof *session->tokens)) return false;
    for (int64_t i = 0; i < s->position; i++)
        if (session->tokens[i] < 0 || session->tokens[i] >= s->vocabulary) return false;
    return !s->has_logits ||
           ln_state_take(&s->tokens, session->logits, (uint64_t)s->vocabulary * sizeof *session->logits);
}

static linnet_status load(linnet_session *session, ln_memory *memory, ln_state_reader *reader) {
    saved s = {0};
    linnet_status status = read_header(session, reader, &s);
    if (status == LINNET_OK) status = ln_memory_read(memory, reader, s.position);
    const bool changed = ln_state_changed(reader);
    if (status != LINNET_OK && !changed) return status;
    if (!changed && take_tokens(session, &s) && !ln_state_changed(reader)) {
        session->position = s.position;
        session->has_logits = s.has_logits;
        return LINNET_OK;
    }
    session->position = 0;
    session->has_logits = false;
    ln_memory_rewind(memory, 0);
    return ln_fail(session->model->context, LINNET_ERROR_FILE,
                   "%s was changed while it was read; the session is empty now", reader->path);
}

linnet_status linnet_session_load(linnet_session *session, const char *path) {
    ln_state_reader reader;
    ln_memory *memory = session->memory;
    linnet_status status = session->device ? ln_device_session_memory(session, false, &memory) : LINNET_OK;
    if (status != LINNET_OK) return status;
    status = ln_state_open(session->model->context, path, &reader);
    if (status == LINNET_OK) {
        status = load(session, memory, &reader);
        ln_state_close(&reader);
        if (status == LINNET_OK && session->device) status = ln_device_session_store(session, memory);
    }
    if (session->device) {
        ln_memory_close(memory);
        if (status != LINNET_OK) ln_device_session_failed(session);
    }
    return status;
}
