/* Added tokens in the text: leftmost, then longest, as the Aho-Corasick automaton of Hugging Face
 * tokenizers finds them; then its rules for single_word, lstrip and rstrip. */
#include "model/tokenizer/internal.h"
#include "model/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

/* ---- building ---- */

typedef struct {
    const uint8_t *bytes;
    size_t n;
    int32_t added;
} entry;

typedef struct {
    uint32_t lo, hi, depth; /* entries[lo..hi) have their first depth bytes in common */
} span;

static int by_bytes(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    return order != 0 ? order : (x->n > y->n) - (x->n < y->n);
}

/* Breadth first, so that the children of a node stand together. spans[i] belongs to nodes[i];
 * entries are sorted. */
static void grow(td_tok_trie *trie, const entry *entries, span *spans)
{
    uint32_t n_nodes = 1;
    for (uint32_t i = 0; i < n_nodes; i++) {
        struct td_tok_node *node = &trie->nodes[i];
        span s = spans[i];
        node->added = -1;
        node->child = n_nodes;
        node->n_children = 0;
        if (s.lo < s.hi && entries[s.lo].n == s.depth) /* sorted: the shortest is first */
            node->added = entries[s.lo++].added;
        while (s.lo < s.hi) {
            uint8_t byte = entries[s.lo].bytes[s.depth];
            uint32_t end = s.lo;
            while (end < s.hi && entries[end].bytes[s.depth] == byte)
                end++;
            trie->nodes[n_nodes].byte = byte;
            spans[n_nodes++] = (span){s.lo, end, s.depth + 1};
            node->n_children++;
            s.lo = end;
        }
    }
    const struct td_tok_node *root = &trie->nodes[0];
    for (uint32_t i = root->child; i < root->child + root->n_children; i++)
        trie->root[trie->nodes[i].byte] = i;
    trie->only_byte = root->n_children == 1 ? trie->nodes[root->child].byte : -1;
}

static td_status build(td_tokenizer *tok, bool normalized, td_tok_trie *trie)
{
    td_status st = TD_NOMEM;
    entry *entries = malloc((tok->n_added + 1) * sizeof(*entries));
    span *spans = NULL;
    size_t n = 0, n_bytes = 0;
    if (entries == NULL)
        goto out;
    for (uint32_t i = 0; i < tok->n_added; i++)
        if (tok->added[i].normalized == normalized) {
            entry *e = &entries[n++];
            e->bytes = td_tok_string(&tok->contents, (uint32_t)tok->added[i].id, &e->n);
            e->added = (int32_t)i;
            n_bytes += e->n;
        }
    trie->empty = n == 0;
    trie->nodes = calloc(n_bytes + 1, sizeof(*trie->nodes));
    spans = malloc((n_bytes + 1) * sizeof(*spans));
    if (trie->nodes == NULL || spans == NULL)
        goto out;
    qsort(entries, n, sizeof(*entries), by_bytes);
    spans[0] = (span){0, (uint32_t)n, 0};
    grow(trie, entries, spans);
    st = TD_OK;
out:
    free(entries);
    free(spans);
    return st;
}

td_status td_tok_tries_build(td_tokenizer *tok)
{
    td_status st = build(tok, false, &tok->tries[0]);
    return st != TD_OK ? st : build(tok, true, &tok->tries[1]);
}

/* ---- searching ---- */

/* The longest token that begins at text[0]; -1: none. */
static int32_t longest(const td_tok_trie *trie, const uint8_t *text, size_t n, size_t *len)
{
    int32_t found = -1;
    uint32_t at = trie->root[text[0]];
    for (size_t depth = 1; at != 0; depth++) {
        const struct td_tok_node *node = &trie->nodes[at];
        if (node->added >= 0) {
            found = node->added;
            *len = depth;
        }
        at = 0;
        if (depth == n)
            break;
        for (uint32_t i = node->child; i < node->child + node->n_children; i++)
            if (trie->nodes[i].byte == text[depth]) {
                at = i;
                break;
            }
    }
    return found;
}

static int32_t next_match(const td_tok_trie *trie, const uint8_t *text, size_t n, size_t from,
                          size_t *start, size_t *end)
{
    if (trie->empty)
        return -1;
    for (size_t i = from; i < n; i++) {
        if (trie->only_byte >= 0) {
            const uint8_t *p = memchr(text + i, trie->only_byte, n - i);
            if (p == NULL)
                return -1;
            i = (size_t)(p - text);
        }
        size_t len;
        int32_t found = longest(trie, text + i, n - i, &len);
        if (found >= 0) {
            *start = i;
            *end = i + len;
            return found;
        }
    }
    return -1;
}

/* Unicode's White_Space */
static bool is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

static bool is_word_char(td_tok_encoder *enc, const uint8_t *p)
{
    size_t len;
    td_utf8_get(p, &len);
    return pcre2_match(enc->tok->word_char, p, len, 0, PCRE2_NO_UTF_CHECK, enc->match,
                       enc->context) > 0;
}

/* A single_word token that touches a word character is no match. */
static bool stands_alone(td_tok_encoder *enc, const uint8_t *text, size_t n, size_t start,
                         size_t end)
{
    if (start > 0 && is_word_char(enc, text + td_utf8_prev(text, start)))
        return false;
    return end == n || !is_word_char(enc, text + end);
}

static void take_spaces(const td_tok_added *added, const uint8_t *text, size_t n, size_t done,
                        size_t *start, size_t *end)
{
    size_t len;
    while (added->lstrip && *start > done) {
        size_t before = td_utf8_prev(text, *start);
        if (!is_space(td_utf8_get(text + before, &len)))
            break;
        *start = before;
    }
    while (added->rstrip && *end < n && is_space(td_utf8_get(text + *end, &len)))
        *end += len;
}

static td_status cut_rest(td_tok_encoder *enc, unsigned stage, const uint8_t *text, size_t n)
{
    if (n == 0)
        return TD_OK;
    return stage == 0 ? td_tok_cut_added(enc, 1, text, n)
                      : td_tok_split(enc, 0, text, n, td_tok_bpe);
}

td_status td_tok_cut_added(td_tok_encoder *enc, unsigned stage, const uint8_t *text, size_t n)
{
    const td_tokenizer *tok = enc->tok;
    size_t done = 0, from = 0, start, end;
    td_status st;
    for (;;) {
        int32_t found = next_match(&tok->tries[stage], text, n, from, &start, &end);
        if (found == -1)
            break;
        const td_tok_added *added = &tok->added[found];
        from = end; /* before rstrip: the automaton knows nothing of it */
        if ((enc->flags & TD_ENCODE_PLAIN) != 0 && added->special)
            continue;
        if (added->single_word && !stands_alone(enc, text, n, start, end))
            continue;
        take_spaces(added, text, n, done, &start, &end);
        if (start > done && (st = cut_rest(enc, stage, text + done, start - done)) != TD_OK)
            return st;
        if ((st = td_tok_emit(enc, (uint32_t)added->id)) != TD_OK)
            return st;
        done = end;
    }
    return cut_rest(enc, stage, text + done, n - done);
}
