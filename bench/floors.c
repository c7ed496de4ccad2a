/* Floors: what a program in C does that needs no more than the decisions that bench/core.py measures.

   Heaps have four children a node, and states are fetched ahead: at 10^6 results the textbook's two without that take half as long again.
*/

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    double score; /* larger is better */
    int32_t arrival, trial;
} Entry;

typedef struct {
    Entry *entries;
    size_t size, capacity;
} Heap;

enum { CHILDREN = 4 };
enum { FIRST, LAST };                /* which end of the order is at a heap's root */
enum { COMING, WAITING, PROMOTED };  /* how a trial stands with the rung */

typedef struct {
    Heap kept, others; /* the best n / eta of n results, the last of them at the root; the rest, the first at the root */
    Heap waiting;      /* for promotion: those of the kept that have not gone on, the best at the root; also some that have */
    uint8_t *state;    /* by trial */
    int32_t n, k, short_of, eta;
    int promotion;
} Rung;

static inline int before(Entry a, Entry b) {
    return a.score > b.score || (a.score == b.score && a.arrival < b.arrival);
}

static inline int above(Entry a, Entry b, int root) { return root == FIRST ? before(a, b) : before(b, a); }

static inline void push(Heap *heap, Entry entry, int root) {
    if (heap->size == heap->capacity) {
        heap->capacity = heap->capacity ? 2 * heap->capacity : 16;
        heap->entries = realloc(heap->entries, heap->capacity * sizeof(Entry));
        if (!heap->entries) abort();
    }
    size_t i = heap->size++, up;
    for (; i > 0 && above(entry, heap->entries[up = (i - 1) / CHILDREN], root); i = up)
        heap->entries[i] = heap->entries[up];
    heap->entries[i] = entry;
}

static inline void replace(Heap *heap, Entry entry, int root) {
    Entry *entries = heap->entries;
    size_t i = 0, down, end;
    for (; (down = CHILDREN * i + 1) < heap->size; i = down) {
        end = down + CHILDREN < heap->size ? down + CHILDREN : heap->size;
        for (size_t other = down + 1; other < end; other++)
            if (above(entries[other], entries[down], root)) down = other;
        if (!above(entries[down], entry, root)) break;
        entries[i] = entries[down];
    }
    entries[i] = entry;
}

static inline void pop(Heap *heap, int root) {
    if (--heap->size) replace(heap, heap->entries[heap->size], root);
}

Rung *rung_new(int32_t eta, int promotion, size_t trials) {
    Rung *rung = calloc(1, sizeof(Rung));
    if (!rung || !(rung->state = calloc(trials, 1))) abort();
    rung->eta = eta;
    rung->promotion = promotion;
    rung->k = !promotion; /* n / eta, for stopping at least 1 */
    rung->short_of = promotion ? eta : 2 * eta;
    return rung;
}

void rung_free(Rung *rung) {
    free(rung->kept.entries);
    free(rung->others.entries);
    free(rung->waiting.entries);
    free(rung->state);
    free(rung);
}

void report_many(
    Rung *rung, const int64_t *trials, const int64_t *steps, const double *scores, size_t m, int64_t level, uint8_t *going
) {
    for (size_t i = 0; i < m; i++) {
        if (i + 8 < m) __builtin_prefetch(&rung->state[trials[i + 8]]);
        going[i] = 0;
        if (steps[i] < level || rung->state[trials[i]] != COMING) continue;
        rung->state[trials[i]] = WAITING;
        Entry entry = {isfinite(scores[i]) ? scores[i] : -INFINITY, rung->n++, (int32_t)trials[i]}, entered = entry;
        if (--rung->short_of == 0) rung->k++, rung->short_of = rung->eta;
        if ((int32_t)rung->kept.size < rung->k) {
            if (rung->others.size && before(rung->others.entries[0], entry)) {
                entered = rung->others.entries[0];
                replace(&rung->others, entry, FIRST);
            }
            push(&rung->kept, entered, LAST);
        } else if (rung->k && before(entry, rung->kept.entries[0])) {
            push(&rung->others, rung->kept.entries[0], FIRST);
            replace(&rung->kept, entry, LAST);
        } else {
            push(&rung->others, entry, FIRST);
            continue;
        }
        if (entered.score == -INFINITY) continue;
        if (!rung->promotion)
            going[i] = entered.arrival == entry.arrival;
        else if (rung->state[entered.trial] == WAITING)
            push(&rung->waiting, entered, FIRST);
    }
}

size_t promote_many(Rung *rung, size_t count, int64_t *promoted) {
    size_t i = 0;
    while (i < count && rung->waiting.size && !before(rung->kept.entries[0], rung->waiting.entries[0])) {
        int32_t trial = rung->waiting.entries[0].trial;
        pop(&rung->waiting, FIRST);
        if (rung->state[trial] != WAITING) continue; /* displaced, kept once more, and so here twice */
        rung->state[trial] = PROMOTED;
        promoted[i++] = trial;
    }
    return i;
}

/* The value of rank k, from 0, among n, which are put before and behind it (Hoare, CACM 4, 1961). */
double quickselect(double *values, size_t n, size_t k) {
    size_t low = 0, high = n - 1;
    while (low < high) {
        double pivot = values[low + (high - low) / 2], swapped;
        size_t i = low, j = high;
        for (;; i++, j--) {
            while (values[i] < pivot) i++;
            while (pivot < values[j]) j--;
            if (i >= j) break;
            swapped = values[i];
            values[i] = values[j];
            values[j] = swapped;
        }
        if (k <= j)
            high = j;
        else
            low = j + 1;
    }
    return values[k];
}
