"""Core: the decisions on arrays. Random streams, domains, rungs, generations, Parzen windows.

Nothing here knows what a trial's configuration means, and nothing is thread-safe but where it says so: one loop owns each object.
`def` checks, `nogil` computes.
"""

cimport cython
from libc.math cimport INFINITY, M_PI, NAN, ceil, copysign, erf, exp, fabs, floor, isfinite, isnan, log, pow, rint, sqrt
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *address) noexcept nogil

import math

import numpy as np

from asynctune.errors import AsynctuneError, InvalidArgument


def as_array(str name, given):
    """An argument as an array. Raises InvalidArgument if there is no way: it is ragged, on a GPU, or has a gradient."""
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"{name} must be an array: {error}") from error


# ---------------------------------------------------------------------------------------------- streams


@cython.final
cdef class Stream:
    """A counter-based stream of random numbers: equal keys give equal draws, whatever else was drawn before.

    The key is (seed, purpose, trial, segment, step), integers of which the low 64 bits count; the generator is
    SplitMix64.
    """

    def __init__(self, seed, int64_t purpose, int64_t trial=0, int64_t segment=0, int64_t step=0):
        self.bits = keyed(seed & 0xFFFFFFFFFFFFFFFF, purpose, trial, segment, step)

    def __reduce__(self):
        return Stream, (0, 0), (self.bits.key, self.bits.counter)

    def __setstate__(self, state):
        self.bits.key, self.bits.counter = state

    def uniform(self):
        """A float in [0, 1), a multiple of 2^-53."""
        return next_uniform(&self.bits)

    def below(self, int64_t n):
        """An integer in 0..n-1, each as likely."""
        if n < 1:
            raise InvalidArgument(f"n must be >= 1, got {n}")
        return next_below(&self.bits, n)


# ---------------------------------------------------------------------------------------------- domains


@cython.final
cdef class Table:
    """The domains of a space, one column per hyperparameter; a row is (d,) float64, NaN where a column is not active.

    kind: (d,) uint8, LINEAR, LOG, NORMAL, CHOICE or ORDINAL.
    low, high: (d,) float64, inclusive; NORMAL: mean and standard deviation; CHOICE, ORDINAL: 0 and the last option.
    step: (d,) float64, 0 for continuous, 1 for integers, q for multiples of q; CHOICE, ORDINAL: of no effect.
    parent: (d,) int32, the column that switches this one on, an earlier one, or -1.
    branch: (d,) int32, the value of the parent that does.

    Raises InvalidArgument if a column breaks a rule.
    """

    def __cinit__(self, kind, low, high, step, parent, branch):
        dtypes = np.uint8, np.float64, np.float64, np.float64, np.int32, np.int32
        self.arguments = tuple(map(np.array, (kind, low, high, step, parent, branch), dtypes))
        self.size = len(self.arguments[0])
        if any(column.shape != (self.size,) for column in self.arguments):
            raise InvalidArgument(f"columns must have one length, got {[column.shape for column in self.arguments]}")
        self.columns = <Domain *> calloc(max(self.size, 1), sizeof(Domain))
        if not self.columns:
            raise MemoryError
        cdef Py_ssize_t j
        cdef Domain *c
        for j in range(self.size):
            c = &self.columns[j]
            c.kind, c.low, c.high, c.step, c.parent, c.branch = (column[j] for column in self.arguments)
            if c.kind not in (LINEAR, LOG, NORMAL, CHOICE, ORDINAL):
                raise InvalidArgument(
                    f"column {j}: kind must be one of LINEAR, LOG, NORMAL, CHOICE, ORDINAL, got {c.kind}"
                )
            if not (isfinite(c.low) and isfinite(c.high) and isfinite(c.step) and c.step >= 0):
                raise InvalidArgument(
                    f"column {j}: low, high, step must be finite and step >= 0, got {c.low}, {c.high}, {c.step}"
                )
            if not -1 <= c.parent < j:
                raise InvalidArgument(f"column {j}: parent must be -1 or an earlier column, got {c.parent}")
            if c.kind == NORMAL:
                if not c.high > 0:
                    raise InvalidArgument(f"column {j}: the standard deviation must be > 0, got {c.high}")
                c.first, c.last, c.small = -INFINITY, INFINITY, c.high
                continue
            if not c.low <= c.high:
                raise InvalidArgument(f"column {j}: low must be <= high, got {c.low} and {c.high}")
            if c.kind == CHOICE or c.kind == ORDINAL:
                c.step = 1
            elif c.kind == LOG:
                if not c.low > 0:
                    raise InvalidArgument(f"column {j}: low must be > 0 in a LOG domain, got {c.low}")
                c.log_low = log(c.low)
                c.log_range = log(c.high + (c.step == 1)) - c.log_low
            elif c.low <= 0 <= c.high:
                c.small = (c.high - c.low) / 10
            if c.step > 0:
                # 0.7 / 0.1 is 6.999...: a bound that is a multiple but for rounding is one.
                c.first, c.last = ceil(c.low / c.step - 1e-9), floor(c.high / c.step + 1e-9)
                if c.first > c.last:
                    raise InvalidArgument(f"column {j}: no multiple of {c.step} is in [{c.low}, {c.high}]")
                if not c.last - c.first < 2.0**63:
                    raise InvalidArgument(
                        f"column {j}: fewer than 2^63 multiples of {c.step} may be in [{c.low}, {c.high}]"
                    )

    def __dealloc__(self):
        free(self.columns)

    def __reduce__(self):
        return Table, self.arguments

    def __len__(self):
        return self.size

    cdef void sample_row(self, double *row, Py_ssize_t stride, Bits *stream) noexcept nogil:
        """Draw row[0], row[stride], ..., a column after the other."""
        cdef uint64_t key = next_bits(stream)
        cdef Bits bits
        cdef Py_ssize_t j
        for j in range(self.size):
            bits = column_stream(key, j)
            row[j * stride] = draw(&self.columns[j], &bits) if active(&self.columns[j], row, stride) else NAN

    cdef void explore_rows(
        self, const double *rows, double *new, Py_ssize_t stride, const int64_t *donors, const int64_t *members,
        const uint64_t *keys, Py_ssize_t m, double resample_probability, double factor,
    ) noexcept nogil:
        """Make each member's row, that begins at new[member], of the row that begins at rows[donor].

        Column by column: a column of a million members is small enough to stay in the cache, a table is not.
        """
        cdef double[2] factors = [1 / factor, factor]
        cdef Py_ssize_t[256] redrawn  # of a block: which are drawn anew
        cdef const double *column
        cdef double *explored
        cdef double x
        cdef uint64_t bits
        cdef Domain domain
        cdef Bits stream
        cdef Py_ssize_t begin, end, count, i, j
        for j in range(self.size):
            domain = self.columns[j]  # a copy, which no store below can change
            column, explored = rows + j * stride, new + j * stride
            for begin in range(0, m, 256):
                count, end = 0, min(begin + 256, m)
                for i in range(begin, end):
                    if i + 64 < m:
                        prefetch(&column[donors[i + 64]])  # donors come in any order
                    if not active(&domain, &new[members[i]], stride):
                        explored[members[i]] = NAN
                        continue
                    x = column[donors[i]]
                    bits = absorb(keys[i], self.size + j)  # the words before that are for the columns' streams
                    explored[members[i]] = perturb(&domain, x, factors, bits & 1)
                    # In a loop of its own: nobody can guess which, and a branch guessed wrong costs as much as a draw.
                    redrawn[count] = i
                    count += isnan(x) | (as_uniform(bits) < resample_probability)
                for i in redrawn[:count]:
                    stream = column_stream(keys[i], j)
                    explored[members[i]] = draw(&self.columns[j], &stream)

    def sample(self, Stream stream not None):
        """A row (d,) float64, every active column drawn from its domain.

        LINEAR is uniform (integers: over low..high; multiples of q: the draw, rounded), LOG uniform in the logarithm
        (integers: the floor of a draw from low to high + 1), NORMAL by its quantile, CHOICE and ORDINAL uniform.
        """
        out = np.empty(self.size)
        cdef double[::1] row = out
        if self.size:
            self.sample_row(&row[0], 1, &stream.bits)
        return out

    def sample_many(self, double[:, ::1] values not None, seed, Py_ssize_t first, Py_ssize_t last):
        """Draw the members first..last - 1 of a population in place, without the GIL.

        values: (d, n) float64. Its column i becomes `sample(Stream(seed, SAMPLE, i))`. Calls for different members may
        run side by side.
        """
        cdef uint64_t word = seed & 0xFFFFFFFFFFFFFFFF
        cdef Py_ssize_t i
        cdef Bits stream
        self.check_values(values)
        if not 0 <= first <= last <= values.shape[1]:
            raise InvalidArgument(f"members must be in 0..{values.shape[1] - 1}, got {first}..{last - 1}")
        if self.size:
            with nogil:
                for i in range(first, last):
                    stream = keyed(word, SAMPLE, i, 0, 0)
                    self.sample_row(&values[0, i], values.shape[1], &stream)

    def explore(
        self, const double[::1] row not None, Stream stream not None, double resample_probability, double perturbation_factor
    ):
        """A new row (d,) float64 made of a row: the explore step of population-based training (Jaderberg et al., 2017).

        Each active hyperparameter is drawn anew with `resample_probability` in [0, 1], else multiplied or divided by
        `perturbation_factor` > 1 with equal chance, inside its bounds. A value on a grid moves by at least one step.
        Where zero is inside the bounds, a value nearer to it than a tenth of the range (NORMAL: than the standard
        deviation) moves by (factor - 1) times that, up or down. ORDINAL goes to a neighbour. CHOICE has no near and far:
        it is drawn anew or stays what the weights were trained with; what a new branch switches on is drawn.
        """
        cdef int64_t member = 0
        cdef uint64_t key
        if row.shape[0] != self.size:
            raise InvalidArgument(f"row must have length {self.size}, got {row.shape[0]}")
        check_explore(resample_probability, perturbation_factor)
        out = np.empty(self.size)
        cdef double[::1] new = out
        if self.size:
            key = next_bits(&stream.bits)
            self.explore_rows(
                &row[0], &new[0], 1, &member, &member, &key, 1, resample_probability, perturbation_factor
            )
        return out

    def explore_many(
        self, double[:, ::1] values not None, const int64_t[::1] donor not None, const int64_t[::1] members not None, seed,
        int64_t step, double resample_probability, double perturbation_factor,
    ):
        """Explore (m,) members of a population in place, without the GIL.

        values: (d, n) float64; donor: (n,). Column i of the values, for each i of members, becomes what `explore` with
        Stream(seed, EXPLORE, i, 0, step) makes of column donor[i]. No member may be a donor; calls for different
        members may run side by side.
        """
        cdef Py_ssize_t i, m = members.shape[0], n = values.shape[1]
        cdef uint64_t word = seed & 0xFFFFFFFFFFFFFFFF
        cdef Bits stream
        self.check_values(values)
        check_explore(resample_probability, perturbation_factor)
        if donor.shape[0] != n:
            raise InvalidArgument(f"donor must have length {n}, got {donor.shape[0]}")
        members = np.array(members)  # of our own: nobody may change an index once it is checked
        check_indices("members", members, n)
        cdef int64_t[::1] donors = np.take(donor, members)
        check_indices("donors", donors, n)
        cdef uint64_t[::1] keys = np.empty(m, dtype=np.uint64)
        if m and self.size:
            with nogil:
                for i in range(m):
                    stream = keyed(word, EXPLORE, members[i], 0, step)
                    keys[i] = next_bits(&stream)
                self.explore_rows(
                    &values[0, 0], &values[0, 0], n, &donors[0], &members[0], &keys[0], m,
                    resample_probability, perturbation_factor,
                )

    cdef int check_values(self, double[:, ::1] values) except -1:
        if values.shape[0] != self.size:
            raise InvalidArgument(f"values must have {self.size} rows, got {values.shape[0]}")
        return 0


cdef int check_explore(double resample_probability, double perturbation_factor) except -1:
    if not 0 <= resample_probability <= 1:
        raise InvalidArgument(f"resample_probability must be in [0, 1], got {resample_probability!r}")
    if not 1 < perturbation_factor < INFINITY:
        raise InvalidArgument(f"perturbation_factor must be > 1 and finite, got {perturbation_factor!r}")
    return 0


cdef int check_indices(str name, const int64_t[::1] indices, Py_ssize_t n) except -1:
    cdef int64_t least = 0, most = 0
    cdef Py_ssize_t i
    for i in range(indices.shape[0]):
        least, most = min(least, indices[i]), max(most, indices[i])
    if indices.shape[0] and not 0 <= least <= most < n:
        raise InvalidArgument(f"{name} must be in 0..{n - 1}, got {least if least < 0 else most}")
    return 0


cdef inline Bits column_stream(uint64_t key, Py_ssize_t j) noexcept nogil:
    # Each column draws from a stream of its own, so that a branch does not shift the draws of the columns after it.
    cdef Bits stream
    stream.key, stream.counter = absorb(key, j), 0
    return stream


cdef inline bint active(const Domain *domain, const double *row, Py_ssize_t stride) noexcept nogil:
    # A parent that is not active is NaN, which equals no branch.
    return domain.parent < 0 or row[domain.parent * stride] == domain.branch


cdef inline double at(const Domain *domain, double k) noexcept nogil:
    """The value k steps from zero, or the nearest that the domain has."""
    k = min(max(k, domain.first), domain.last) * domain.step
    return k if domain.kind == NORMAL else min(max(k, domain.low), domain.high)


cdef double draw(const Domain *domain, Bits *stream) noexcept nogil:
    """A value drawn from its domain."""
    cdef double value
    if domain.kind == NORMAL:
        value = domain.low + domain.high * normal_quantile(next_cell(stream))
    elif domain.kind == LOG:
        value = exp(domain.log_low + domain.log_range * next_uniform(stream))
        if domain.step == 1:
            value = floor(value)
    elif domain.step == 1:
        value = domain.first + <double> next_below(stream, <uint64_t> (domain.last - domain.first) + 1)
    else:
        value = domain.low + (domain.high - domain.low) * next_uniform(stream)
    if domain.step > 0:
        return at(domain, rint(value / domain.step))
    return value if domain.kind == NORMAL else min(max(value, domain.low), domain.high)


cdef inline double perturb(const Domain *domain, double x, const double *factors, bint up) noexcept nogil:
    """A value moved by factors[1], up, or factors[0], down; on a grid by at least one step, at its end inwards."""
    cdef double y, k, old, direction
    if domain.kind == CHOICE:
        return x
    if domain.kind == ORDINAL:
        y = x + 2 * up - 1
    elif fabs(x) < domain.small:
        # A factor would never leave zero, nor change a sign.
        y = x + (2 * up - 1) * (factors[1] - 1) * domain.small
    else:
        y = x * factors[up]
    if domain.step == 0:
        return y if domain.kind == NORMAL else min(max(y, domain.low), domain.high)
    old = min(max(rint(x / domain.step), domain.first), domain.last)
    direction = copysign(1, y - x)
    k = old + direction * max(direction * (rint(y / domain.step) - old), 1)
    if k > domain.last and old == domain.last:
        k = old - 1
    elif k < domain.first and old == domain.first:
        k = old + 1
    return at(domain, k)


cdef double normal_quantile(double p) noexcept nogil:
    """The standard normal's quantile at 0 < p < 1, to about 1e-16 (Wichura, AS 241, Applied Statistics 37, 1988)."""
    cdef double q = p - 0.5, r
    if fabs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * (((((((2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4) * r
                         + 4.5921953931549871457e4) * r + 1.3731693765509461125e4) * r + 1.9715909503065514427e3) * r
                     + 1.3314166789178437745e2) * r + 3.3871328727963666080e0) / (
                    ((((((5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4) * r
                        + 2.1213794301586595867e4) * r + 5.3941960214247511077e3) * r + 6.8718700749205790830e2) * r
                     + 4.2313330701600911252e1) * r + 1.0)
    r = sqrt(-log(p if q < 0 else 1 - p))
    if r <= 5:
        r -= 1.6
        r = (((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r
                + 1.27045825245236838258e0) * r + 3.64784832476320460504e0) * r + 5.76949722146069140550e0) * r
             + 4.63033784615654529590e0) * r + 1.42343711074968357734e0) / (
            ((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r
                + 1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r
             + 2.05319162663775882187e0) * r + 1.0)
    else:
        r -= 5
        r = (((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 1.24266094738807843860e-3) * r
                + 2.65321895265761230930e-2) * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580e0) * r
             + 5.46378491116411436990e0) * r + 6.65790464350110377720e0) / (
            ((((((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r + 1.84631831751005468180e-5) * r
                + 7.86869131145613259100e-4) * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
             + 5.99832206555887937690e-1) * r + 1.0)
    return -r if q < 0 else r


# ---------------------------------------------------------------------------------------- whole populations


def best(const double[::1] scores not None, double sign, Py_ssize_t k, double[::1] scratch not None):
    """Who are the best k by (n,) scores, of those only who have a finite one: (<= k,) int64, ascending, in O(n).

    sign: 1 if larger scores are better, -1 if smaller. NaN and infinities are the worst; ties go to the lower member.
    k: in 1..n. scratch: (n,) float64, overwritten. Nearly all without the GIL.
    """
    cdef Py_ssize_t i, n = scores.shape[0], count = 0, ties
    cdef double loss, edge
    check_selection(scores, k, scratch)
    with nogil:
        fill_losses(scores, sign, scratch)
    losses = np.asarray(scratch)
    losses.partition(k - 1)
    edge = losses[k - 1]
    ties = np.count_nonzero(losses[:k] == edge) if isfinite(edge) else 0
    out = np.empty(k + 1, dtype=np.int64)  # one place more, for what is written and not counted
    cdef int64_t[::1] members = out
    with nogil:
        for i in range(n):
            loss = as_loss(scores[i], sign)
            members[min(count, k)] = i  # in bounds even if somebody changes the scores meanwhile
            count += (loss < edge) | ((loss == edge) & (ties > 0))
            ties -= loss == edge
    return out[:min(count, k)]


def worst(const double[::1] scores not None, double sign, Py_ssize_t k, double[::1] scratch not None):
    """Who are the worst k by (n,) scores: (k,) int64, ascending, in O(n). Arguments as for `best`."""
    cdef Py_ssize_t i, n = scores.shape[0], left = k, ties
    cdef double loss, edge
    check_selection(scores, k, scratch)
    with nogil:
        fill_losses(scores, sign, scratch)
    losses = np.asarray(scratch)
    losses.partition(n - k)
    edge = losses[n - k]
    ties = np.count_nonzero(losses[n - k:] == edge)
    out = np.empty(k + 1, dtype=np.int64)
    cdef int64_t[::1] members = out
    with nogil:
        for i in range(n - 1, -1, -1):  # of those tied at the edge the last
            loss = as_loss(scores[i], sign)
            members[max(left, 0)] = i
            left -= (loss > edge) | ((loss == edge) & (ties > 0))
            ties -= loss == edge
    return out[1 + max(left, 0):]


cdef int check_selection(const double[::1] scores, Py_ssize_t k, double[::1] scratch) except -1:
    if not 1 <= k <= scores.shape[0]:
        raise InvalidArgument(f"k must be in 1..{scores.shape[0]}, got {k}")
    if scratch.shape[0] != scores.shape[0]:
        raise InvalidArgument(f"scratch must have length {scores.shape[0]}, got {scratch.shape[0]}")
    return 0


cdef inline double as_loss(double score, double sign) noexcept nogil:
    # The worst are the greatest: NumPy's vectorised quickselect is slow where many are tied for the least.
    return -sign * score if isfinite(score) else INFINITY


cdef void fill_losses(const double[::1] scores, double sign, double[::1] losses) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(scores.shape[0]):
        losses[i] = as_loss(scores[i], sign)


cpdef Py_ssize_t truncated(Py_ssize_t n, double quantile_fraction) noexcept:
    """How many of n >= 0 members are the best, and as many the worst; quantile_fraction in [0, 0.5]. At n = 1 none are, else one at least."""
    return min(n // 2, max(1, <Py_ssize_t> floor(quantile_fraction * n)))


def draw_donors(
    int64_t[::1] donor not None, const int64_t[::1] best not None, const int64_t[::1] members not None, seed, int64_t step
):
    """For each i of (m,) members donor[i], of (n,) int64, becomes one of the best, each as likely, without the GIL.

    The draws are from Stream(seed, DONOR, i, 0, step). Calls for different members may run side by side.
    """
    cdef Py_ssize_t i
    cdef uint64_t word = seed & 0xFFFFFFFFFFFFFFFF, n = best.shape[0]
    cdef Bits stream
    if n == 0:
        raise InvalidArgument("best must have at least one member, got none")
    members = np.array(members)  # of our own: nobody may change an index once it is checked
    check_indices("members", members, donor.shape[0])
    cdef int64_t[::1] drawn = np.empty(members.shape[0], dtype=np.int64)
    with nogil:
        for i in range(members.shape[0]):
            stream = keyed(word, DONOR, members[i], 0, step)
            drawn[i] = next_below(&stream, n)
        for i in range(members.shape[0]):  # a loop so short that the processor has many of these loads on their way
            donor[members[i]] = best[drawn[i]]


# ----------------------------------------------------------------------------------------- order statistics


cdef enum:  # which end of the order is at the root of a heap
    FIRST
    LAST


cdef inline bint above(const Entry a, const Entry b, bint root) noexcept nogil:
    return before(a, b) if root == FIRST else before(b, a)


cdef int grow(Heap *heap) except -1 nogil:
    cdef Py_ssize_t capacity = 2 * heap.capacity if heap.capacity else 16
    cdef Entry *entries = <Entry *> realloc(heap.entries, capacity * sizeof(Entry))
    if not entries:
        raise MemoryError
    heap.entries, heap.capacity = entries, capacity
    return 0


cdef inline int reserve(Heap *heap) except -1 nogil:
    """Make room for one more entry."""
    return grow(heap) if heap.size == heap.capacity else 0


cdef inline void push(Heap *heap, const Entry entry, bint root) noexcept nogil:
    """Add an entry, for which there is room."""
    cdef Entry *entries = heap.entries
    cdef Py_ssize_t i = heap.size, up
    heap.size += 1
    while i > 0:
        up = (i - 1) >> 2
        if not above(entry, entries[up], root):
            break
        entries[i] = entries[up]
        i = up
    entries[i] = entry


cdef inline void replace(Heap *heap, const Entry entry, bint root) noexcept nogil:
    """Put an entry in the root's place, in a heap that is not empty."""
    cdef Entry *entries = heap.entries
    cdef Py_ssize_t i = 0, down = 1, other, size = heap.size
    while down < size:
        # A branch, so that the processor guesses and runs ahead: at 10^6 entries a conditional move waits for memory.
        for other in range(down + 1, min(down + 4, size)):
            if above(entries[other], entries[down], root):
                down = other
        if not above(entries[down], entry, root):
            break
        entries[i] = entries[down]
        i = down
        down = 4 * i + 1
    entries[i] = entry


cdef inline void pop(Heap *heap, bint root) noexcept nogil:
    """Remove the root of a heap that is not empty."""
    heap.size -= 1
    if heap.size:
        replace(heap, heap.entries[heap.size], root)


cdef inline int make_way(Split *split) except -1 nogil:
    """Make room for one more entry, wherever it will stand."""
    reserve(&split.kept)
    return reserve(&split.others)


cdef inline bint insert(Split *split, const Entry entry, Py_ssize_t k, Entry *entered) noexcept nogil:
    """Add an entry, for which there is room, to an order of which k are kept from now on, as many as before or one more.

    Return whether one is kept that was not before: `entered`, this one or one of the others.
    """
    entered[0] = entry
    if split.kept.size < k:
        if split.others.size and not before(entry, split.others.entries[0]):
            entered[0] = split.others.entries[0]
            replace(&split.others, entry, FIRST)
        push(&split.kept, entered[0], LAST)
        return True
    if k > 0 and before(entry, split.kept.entries[0]):
        push(&split.others, split.kept.entries[0], FIRST)
        replace(&split.kept, entry, LAST)
        return True
    push(&split.others, entry, FIRST)
    return False


cdef void discard(Split *split) noexcept nogil:
    free(split.kept.entries)
    free(split.others.entries)


cdef tuple entry_state(const Entry entry):
    return entry.score, entry.arrival, entry.trial


cdef list heap_state(const Heap *heap):
    """The entries of a heap, sorted: how they lie in it decides nothing."""
    return sorted([entry_state(heap.entries[i]) for i in range(heap.size)])


cdef tuple split_state(const Split *split):
    return heap_state(&split.kept), heap_state(&split.others)


# ----------------------------------------------------------------------------------------- successive halving


cdef enum:
    RETIRED = 255  # the position of a trial that has ended; rung 63 ends at 254


@cython.final
cdef class Ladder:
    """The rungs of asynchronous successive halving (Li et al., MLSys 2020) and its brackets: who goes on, O(log n) each.

    levels: 1 to 64 increasing steps >= 1, the last of which completes a trial. reduction_factor: an integer >= 2.
    promotion: a trial waits at each rung until it is among the best n // reduction_factor of the n results there
    (Algorithm 2); else it goes on at once iff it is among the best max(1, n // reduction_factor), itself included.
    minimize: smaller scores are better, else larger ones. weights: bracket j starts at rung j and compares its own trials
    only; a trial is drawn into it, with `seed`, as often as its weight says.

    Scores that are not finite are the worst and never go on; ties go to the earlier report. Trials are 0, 1, ...
    < 2^31 - 1. Raises InvalidArgument if an argument breaks a rule, and changes nothing then; AsynctuneError if another
    thread's call is at work.
    """

    def __cinit__(
        self, levels, int64_t reduction_factor, bint promotion=False, bint minimize=False, weights=(1,), seed=0
    ):
        if not 1 <= len(levels) <= 64 or levels[0] < 1 or any(a >= b for a, b in zip(levels, levels[1:])):
            raise InvalidArgument(f"levels must be 1 to 64 increasing steps >= 1, got {levels!r}")
        if not 2 <= reduction_factor < INT32_MAX:
            raise InvalidArgument(f"reduction_factor must be in 2..2^31 - 2, got {reduction_factor}")
        if not 1 <= len(weights) <= len(levels) or min(weights) < 1 or sum(weights) >= 2**64:
            raise InvalidArgument(f"weights must be 1 to {len(levels)} integers >= 1, their sum < 2^64, got {weights!r}")
        self.top, self.brackets = len(levels), len(weights)
        for r in range(self.top):
            self.levels[r] = levels[r]
        for j in range(self.brackets):
            self.weights[j] = sum(weights[:j + 1])
        self.reduction_factor, self.promotion, self.minimize = reduction_factor, promotion, minimize
        self.seed = seed & 0xFFFFFFFFFFFFFFFF
        self.rungs = <Rung *> calloc(self.brackets * self.top, sizeof(Rung))
        if not self.rungs:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.brackets * self.top if self.rungs else 0):
            discard(&self.rungs[i].results)
            free(self.rungs[i].waiting.entries)
        free(self.rungs)
        free(self.position)
        free(self.latest)

    cdef int enter(self) except -1:
        """Called first, with the GIL: no call may come upon the work of another, which may have let the GIL go."""
        if self.working:
            raise AsynctuneError("this object is at work in another thread; one thread at a time may call it")
        return 0

    cdef int make_room(self, int64_t trial) except -1 nogil:
        """Have arrays that reach to a trial. Ids are below 2^31 - 1 and count once at a rung, so that arrivals are too."""
        cdef Py_ssize_t capacity
        cdef void *grown
        if 0 <= trial < self.capacity:
            return 0
        if not 0 <= trial < INT32_MAX:
            with gil:
                raise InvalidArgument(f"trial must be in 0..2^31 - 2, got {trial}")
        capacity = max(2 * self.capacity, trial + 1, 64)
        if self.promotion:
            grown = realloc(self.latest, capacity * sizeof(Entry))
            if not grown:
                raise MemoryError
            self.latest = <Entry *> grown
        # calloc, since of fresh memory only what is touched is taken: one high id costs no more than many low ones.
        grown = calloc(capacity, 1)
        if not grown:
            raise MemoryError
        if self.capacity:
            memcpy(grown, self.position, self.capacity)
        free(self.position)
        self.position, self.capacity = <uint8_t *> grown, capacity
        return 0

    cdef Py_ssize_t bracket(self, int64_t trial) noexcept nogil:
        """The bracket of a trial: drawn anew for each question, which takes less time than to look it up."""
        cdef Py_ssize_t j = 0
        cdef uint64_t drawn
        cdef Bits bits
        if self.brackets > 1:
            bits = keyed(self.seed, BRACKET, trial, 0, 0)
            drawn = next_below(&bits, self.weights[self.brackets - 1])
            while drawn >= self.weights[j]:
                j += 1
        return j

    cdef Rung *rung(self, int64_t trial, Py_ssize_t r) noexcept nogil:
        return &self.rungs[self.bracket(trial) * self.top + r]

    cdef Py_ssize_t coming(self, int64_t trial) noexcept nogil:
        """The rung that a trial is on its way to or held at: from the beginning not below its bracket's first."""
        return max(self.position[trial] >> 2, self.bracket(trial))

    cdef bint among_best(self, Py_ssize_t r, Entry *entry) except -1 nogil:
        """Record a result, setting its arrival. Return whether it is now among those that may go on from this rung."""
        cdef Rung *rung = self.rung(entry.trial, r)
        cdef Entry entered
        make_way(&rung.results)
        if self.promotion:
            reserve(&rung.waiting)
        if rung.short_of == 0:
            # k = n // reduction_factor, with stopping at least 1: counted, since a division takes longer than the rest.
            rung.k = 0 if self.promotion else 1
            rung.short_of = self.reduction_factor if self.promotion else 2 * self.reduction_factor
        entry.arrival = <int32_t> rung.n
        rung.n += 1
        rung.short_of -= 1
        if rung.short_of == 0:
            rung.k += 1
            rung.short_of = self.reduction_factor
        if not insert(&rung.results, entry[0], rung.k, &entered) or entered.score == -INFINITY:
            return False
        if entered.arrival == entry.arrival:
            return True
        # Only the kept may wait. One that is displaced and comes back is there twice, which `settle` can bear.
        if self.position[entered.trial] == 4 * r + OFFERED:
            push(&rung.waiting, entered, FIRST)
        return False

    cdef bint decide(self, int32_t trial, int64_t step, double score, Entry *entry) except -1 nogil:
        """Record a report where it is due, the lowest rung first. Return whether that is anywhere: `entry` is the last."""
        cdef Py_ssize_t r = self.coming(trial)
        cdef bint kept
        if self.position[trial] == RETIRED:
            return False
        if self.position[trial] & 3:
            # Held at rung r. A report from beyond the next rung says that it went on all the same.
            if not self.promotion or r + 1 == self.top or step < self.levels[r + 1]:
                return False
            self.go_on(trial)
            r += 1
        if step < self.levels[r]:
            return False
        entry.score, entry.trial = -score if self.minimize else score, trial
        if not isfinite(score):
            entry.score = -INFINITY
        while True:
            kept = self.among_best(r, entry)
            if r + 1 == self.top or not (step >= self.levels[r + 1] if self.promotion else kept):
                self.position[trial] = 4 * r + HELD
                return True
            r += 1
            self.position[trial] = 4 * r + COMING
            if step < self.levels[r]:
                return True

    cdef int wait(self, int64_t trial, const Entry *entry) except -1 nogil:
        """A trial is saved: if it is held at a rung, by `entry`, it is offered there, and waits if that is kept."""
        cdef Py_ssize_t r = self.position[trial] >> 2
        cdef Rung *rung
        if self.position[trial] & 3 != HELD:
            return 0
        rung = self.rung(trial, r)
        reserve(&rung.waiting)
        self.position[trial] = 4 * r + OFFERED
        if r + 1 < self.top and is_kept(&rung.results, entry[0]) and entry.score > -INFINITY:
            push(&rung.waiting, entry[0], FIRST)
        return 0

    cdef void go_on(self, int64_t trial) noexcept nogil:
        """Send a trial that is held on to the next rung."""
        cdef Py_ssize_t r = self.position[trial] >> 2
        self.position[trial] = 4 * (r + 1) + COMING
        self.settle(self.rung(trial, r), r)

    cdef void settle(self, Rung *rung, Py_ssize_t r) noexcept nogil:
        """Have a trial that is really offered at rung r at the root of those that wait there, or none."""
        while rung.waiting.size and self.position[rung.waiting.entries[0].trial] != 4 * r + OFFERED:
            pop(&rung.waiting, FIRST)

    cdef Rung *find(self) noexcept nogil:
        """The rung from which a trial may be promoted, the one at the root of `waiting`, or NULL.

        The highest level goes first, then the lowest bracket.
        """
        cdef Py_ssize_t r, j
        cdef Rung *rung
        for r in range(self.top - 2, -1, -1):
            for j in range(min(self.brackets, r + 1)):
                rung = &self.rungs[j * self.top + r]
                if rung.waiting.size and is_kept(&rung.results, rung.waiting.entries[0]):
                    return rung
        return NULL

    def report(self, int64_t trial, int64_t step, double score):
        """Record a trial's score after a step. Return in one integer where that leaves it.

        It is recorded at every rung that it has reached since its last report, the lowest first. Failing at one ends
        that; with promotion it counts as promoted at all but the highest. A rung that has its result is left alone.

        The integer is 2 * (before * (len(levels) + 1) + now) + (1 if it goes on, else 0), where `before` and `now` count the
        levels that it has behind it, those below its bracket included; 0 if it is retired.
        """
        cdef Entry entry
        cdef Py_ssize_t before, now
        self.enter()
        if step < 1:
            raise InvalidArgument(f"step must be >= 1, got {step}")
        self.make_room(trial)
        if self.position[trial] == RETIRED:
            return 0
        before = self.coming(trial) + (self.position[trial] & 3 != COMING)
        if self.decide(trial, step, score, &entry) and self.promotion:
            self.latest[trial] = entry
        now = self.coming(trial) + (self.position[trial] & 3 != COMING)
        return 2 * (before * (self.top + 1) + now) + (self.position[trial] & 3 == COMING)

    def report_many(
        self, const int64_t[::1] trials not None, const int64_t[::1] steps not None, const double[::1] scores not None
    ):
        """Report (m,) scores in array order, `offer` included, without the GIL. Return (m,) bool: who goes on."""
        cdef Py_ssize_t i, m = trials.shape[0]
        cdef int64_t trial, least = 0, most = 0, first = 1
        cdef bint recorded
        cdef Entry entry
        if steps.shape[0] != m or scores.shape[0] != m:
            raise InvalidArgument(
                f"lengths must be equal, got {m} trials, {steps.shape[0]} steps, {scores.shape[0]} scores"
            )
        out = np.empty(m, dtype=np.bool_)
        cdef uint8_t[::1] going = out.view(np.uint8)
        self.enter()
        self.working = True
        try:
            with nogil:
                for i in range(m):
                    least, most, first = min(least, trials[i]), max(most, trials[i]), min(first, steps[i])
                if first < 1:
                    with gil:
                        raise InvalidArgument(f"steps must be >= 1, got {first}")
                self.make_room(least)
                self.make_room(most)
                for i in range(m):
                    if i + 8 < m:
                        prefetch(&self.position[trials[i + 8]])  # trials come in any order
                    trial = trials[i]
                    self.make_room(trial)  # once more, in case somebody has changed the array
                    recorded = self.decide(<int32_t> trial, steps[i], scores[i], &entry)
                    going[i] = self.position[trial] & 3 == COMING
                    if self.promotion:
                        self.wait(trial, &entry if recorded else &self.latest[trial])
        finally:
            self.working = False
        return out

    def offer(self, int64_t trial):
        """The trial is saved and waits: it may be promoted from here on, if it is held at a rung below the last."""
        self.enter()
        self.make_room(trial)
        if self.promotion:
            self.wait(trial, &self.latest[trial])

    def promotable(self):
        """The trial that may be promoted now, from the highest rung the best, and the step of its next rung; or None."""
        self.enter()
        cdef Rung *rung = self.find()
        if not rung:
            return None
        trial = rung.waiting.entries[0].trial
        return trial, self.levels[(self.position[trial] >> 2) + 1]

    def promote(self, int64_t trial):
        """Let a trial go on from the rung at which it waits."""
        self.enter()
        self.make_room(trial)
        cdef Py_ssize_t position = self.position[trial]
        if not self.promotion or position & 3 == COMING or position == RETIRED or (position >> 2) + 1 == self.top:
            raise InvalidArgument(f"trial {trial} must wait at a rung below the last")
        self.go_on(trial)

    def promote_many(self, Py_ssize_t count):
        """Promote up to `count` trials. Return their ids, (<= count,) int64, in the order in which they were found."""
        if count < 0:
            raise InvalidArgument(f"count must be >= 0, got {count}")
        count = min(count, self.capacity)
        out = np.empty(count, dtype=np.int64)
        cdef int64_t[::1] promoted = out
        cdef Py_ssize_t i = 0
        cdef Rung *rung
        self.enter()
        self.working = True
        with nogil:
            while i < count:
                rung = self.find()
                if not rung:
                    break
                promoted[i] = rung.waiting.entries[0].trial
                self.go_on(promoted[i])
                i += 1
        self.working = False
        return out[:i]

    def retire(self, int64_t trial, bint failed=False):
        """The trial has ended: it counts where it is recorded, and is not promoted any more.

        If it failed on its way to a rung, it is recorded there as the worst: return the step of that rung, else None.
        """
        self.enter()
        self.make_room(trial)
        cdef Py_ssize_t r = self.coming(trial)
        cdef uint8_t position = self.position[trial]
        cdef Entry worst
        if position == RETIRED:
            return None
        if failed and position & 3 == COMING:
            worst.score, worst.trial = -INFINITY, trial
            self.among_best(r, &worst)
            self.position[trial] = RETIRED
            return self.levels[r]
        self.position[trial] = RETIRED
        if position & 3 != COMING:
            self.settle(self.rung(trial, r), r)
        return None

    def due(self, int64_t trial):
        """The step of the rung that the trial is on its way to, or held at."""
        self.enter()
        self.make_room(trial)
        return self.levels[min(self.coming(trial), self.top - 1)]

    def state(self):
        """All that answers depend on besides the arguments, as tuples and lists: equal ones will answer alike."""
        self.enter()
        cdef Py_ssize_t i, used
        rungs = [
            (split_state(&rung.results), heap_state(&rung.waiting), rung.n, rung.k, rung.short_of)
            for rung in self.rungs[:self.brackets * self.top]
        ]
        used = self.capacity
        while used and self.position[used - 1] == COMING:  # as of trials that nobody has asked about
            used -= 1
        positions = [self.position[i] for i in range(used)]
        held = [
            entry_state(self.latest[i]) if self.promotion and positions[i] & 3 and positions[i] != RETIRED else None
            for i in range(used)
        ]
        return rungs, positions, held


# ----------------------------------------------------------------------------------- population-based training


cdef int by_rank(const void *a, const void *b) noexcept nogil:
    """For qsort: the last first, which is the order of a heap with the last at its root."""
    return -1 if before((<const Entry *> b)[0], (<const Entry *> a)[0]) else 1


cdef Entry reversed_entry(Entry entry) noexcept nogil:
    entry.score, entry.arrival = -entry.score, -entry.arrival
    return entry


@cython.final
cdef class Generation:
    """What was recorded at one depth: the best and the worst k of n, their checkpoints, and who waits there.

    All of it grows as members arrive: with stragglers many depths are alive, and most of them hold few members.
    """

    def __cinit__(self, int32_t depth):
        # Arrays, and not a dict or tuples: a garbage collector that walks through a million of them stops the world.
        self.depth, self.checkpoints = depth, []

    def __dealloc__(self):
        free(self.steps)
        free(self.waiting)
        discard(&self.best)
        discard(&self.worst)

    cdef int keep(self, Py_ssize_t arrival, str checkpoint, int64_t step) except -1:
        """Note under which name, and after which step, a result's member was saved."""
        cdef Py_ssize_t room
        cdef void *grown
        if arrival >= self.room:
            room = max(2 * self.room, arrival + 1, 16)
            grown = realloc(self.steps, room * sizeof(int64_t))
            if not grown:
                raise MemoryError
            self.steps = <int64_t *> grown
            self.checkpoints.extend([None] * (room - self.room))
            self.room = room
        self.checkpoints[arrival], self.steps[arrival] = checkpoint, step
        return 0

    cdef int join(self, Member *member) except -1:
        """Have a member wait here."""
        cdef Py_ssize_t capacity
        cdef void *grown
        if self.num_waiting == self.capacity:
            capacity = max(2 * self.capacity, 16)
            grown = realloc(self.waiting, capacity * sizeof(int32_t))
            if not grown:
                raise MemoryError
            self.waiting, self.capacity = <int32_t *> grown, capacity
        self.waiting[self.num_waiting] = member.entry.trial
        member.place, member.waiting = self.num_waiting, True
        self.num_waiting += 1
        return 0

    cdef void part(self, Member *members, Member *member) noexcept:
        """A member waits no more; the last in the row takes its place."""
        self.num_waiting -= 1
        cdef int32_t last = self.waiting[self.num_waiting]
        self.waiting[member.place], members[last].place = last, member.place
        member.waiting = False

    cdef bint able(self, Entry entry):
        """Whether a member can give: its score is finite, and it is saved."""
        if entry.score == -INFINITY or entry.arrival >= self.room:
            return False
        return self.checkpoints[entry.arrival] is not None

    cdef tuple gift(self, Entry entry):
        return entry.trial, self.checkpoints[entry.arrival], self.steps[entry.arrival], entry.score


@cython.final
cdef class Generations:
    """Truncation selection among members compared at equal depth (Jaderberg et al., 2017).

    O(log n) for a record, O(1) for the rest, but for one sort of the best at a barrier.

    population: members are 0..population - 1. depths: how many intervals there are to decide at, 1..depths.
    quantile_fraction: in [0, 0.5]; of the n results at a depth, k = min(n // 2, max(1, floor(quantile_fraction n))) are
    the best, as many the worst. seed: of the draws. barrier: nobody goes on before everyone that is not gone has
    arrived; results at one depth then count as simultaneous, ties go to the lower member, and so no decision depends
    on the order of arrival; else ties go to the earlier report.

    A member's way: `record` at a depth, `save`, and it waits; `next` names it, `donor` says from whom it takes over,
    `advance`. Or `leave`. Scores are oriented: larger is better. Raises InvalidArgument if an argument breaks a rule.
    """

    def __cinit__(self, int64_t population, int64_t depths, double quantile_fraction, seed, bint barrier):
        if not 1 <= population < INT32_MAX:
            raise InvalidArgument(f"population must be in 1..2^31 - 2, got {population}")
        if not 0 <= depths < INT32_MAX - 1:
            raise InvalidArgument(f"depths must be in 0..2^31 - 3, got {depths}")
        if not 0 <= quantile_fraction <= 0.5:
            raise InvalidArgument(f"quantile_fraction must be in [0, 0.5], got {quantile_fraction!r}")
        self.population, self.depths = population, depths
        self.quantile_fraction, self.seed, self.barrier = quantile_fraction, seed & 0xFFFFFFFFFFFFFFFF, barrier
        self.members = <Member *> calloc(population, sizeof(Member))
        self.arrived = <int32_t *> calloc(depths + 2, sizeof(int32_t))
        self.passed = <int32_t *> calloc(depths + 2, sizeof(int32_t))
        if not (self.members and self.arrived and self.passed):
            raise MemoryError
        self.arrived[0] = self.passed[0] = population
        self.generations, self.freed = {}, []

    def __dealloc__(self):
        free(self.members)
        free(self.arrived)
        free(self.passed)
        free(self.queue.entries)

    cdef Member *member(self, int64_t trial) except NULL:
        if not 0 <= trial < self.population:
            raise InvalidArgument(f"member must be in 0..{self.population - 1}, got {trial}")
        return &self.members[trial]

    cdef Member *waiting(self, int64_t trial) except NULL:
        cdef Member *member = self.member(trial)
        if not member.waiting:
            raise InvalidArgument(f"member {trial} must wait for its turn")
        return member

    cdef Generation generation(self, int32_t depth):
        if self.first is not None and self.first.depth == depth:
            return self.first
        generation = self.generations.get(depth)
        if generation is None:
            generation = self.generations[depth] = Generation(depth)
        return <Generation> generation

    cdef int move_up(self) except -1:
        """After a change: have a depth at which somebody waits at the queue's root, and free what everyone has passed."""
        cdef Generation generation
        if self.first is None or self.first.num_waiting == 0:
            self.first = None
            while self.queue.size:
                generation = self.generations.get(self.queue.entries[0].trial)
                if generation is not None and generation.num_waiting:
                    self.first = generation
                    break
                pop(&self.queue, FIRST)
                if generation is not None:
                    generation.queued = False
        while self.least_arrived <= self.depths and self.arrived[self.least_arrived] == 0:
            self.least_arrived += 1
        while self.least_passed <= self.depths and self.passed[self.least_passed] == 0:
            self.least_passed += 1
            generation = self.generations.pop(self.least_passed, None)
            if generation is not None:
                self.freed.extend([name for name in generation.checkpoints if name is not None])
        return 0

    def record(self, int64_t trial, int64_t depth, double score):
        """Record a member's score at a depth. Return whether it counts: not at that depth again, nor at a lower one."""
        cdef Member *member = self.member(trial)
        cdef Generation generation
        cdef Py_ssize_t k
        cdef Entry entered
        if not 1 <= depth <= self.depths:
            raise InvalidArgument(f"depth must be in 1..{self.depths}, got {depth}")
        if member.gone or member.waiting or depth <= member.recorded:
            return False
        generation = self.generation(depth)
        k = truncated(generation.n + 1, self.quantile_fraction)
        make_way(&generation.best)
        make_way(&generation.worst)
        member.entry.score = score if isfinite(score) else -INFINITY
        member.entry.arrival = trial if self.barrier else generation.n
        member.entry.trial = trial
        insert(&generation.best, member.entry, k, &entered)
        insert(&generation.worst, reversed_entry(member.entry), k, &entered)
        generation.n += 1
        generation.ranked = False
        member.recorded = depth
        return True

    def save(self, int64_t trial, int64_t step, str checkpoint):
        """The member paused, saved after `step` under a name or not (None). If undecided, it waits for its turn."""
        cdef Member *member = self.member(trial)
        cdef Generation generation
        cdef Entry depth
        if member.gone or member.waiting or member.recorded == member.passed:
            if checkpoint is not None:
                self.freed.append(checkpoint)
            return
        generation = self.generation(member.recorded)
        reserve(&self.queue)
        if checkpoint is not None:
            generation.keep(member.entry.arrival, checkpoint, step)
        generation.join(member)
        if not generation.queued:
            depth.score, depth.arrival, depth.trial = -member.recorded, 0, member.recorded
            push(&self.queue, depth, FIRST)
            generation.queued = True
            if self.first is not None and generation.depth < self.first.depth:
                self.first = generation
        self.arrived[member.passed] -= 1
        self.arrived[member.recorded] += 1
        self.move_up()

    def undecided_depth(self, int64_t trial):
        """The depth at which the member is recorded and not yet decided on, or None."""
        cdef Member *member = self.member(trial)
        return member.recorded if member.recorded > member.passed else None

    def passed_depth(self, int64_t trial):
        """The depth at which the member was last decided on, 0 before the first."""
        return self.member(trial).passed

    def next(self, warm=None):
        """The member whose turn it is, or None: the least trained, of equals `warm`, else one drawn among those that wait."""
        cdef Generation first = self.first
        cdef Member *member
        cdef Bits bits
        cdef int32_t trial
        if first is None or self.barrier and self.least_arrived < first.depth:
            return None
        if warm is not None:
            member = self.member(warm)
            if member.waiting and member.recorded == first.depth:
                return warm
        bits = keyed(self.seed, ORDER, first.decided, 0, first.depth)
        trial = first.waiting[next_below(&bits, first.num_waiting)]
        # Who will be asked about, and who will take its place: at 10^6 members `donor` and `advance` would wait for both.
        prefetch(&self.members[trial])
        prefetch(&self.members[first.waiting[first.num_waiting - 1]])
        return trial

    def donor(self, int64_t trial):
        """From whom a waiting member takes over: None, or (donor, checkpoint, its step, its score).

        One of the worst k takes over from one of the best k with a finite score and a checkpoint, each as likely.
        """
        cdef Member *member = self.waiting(trial)
        cdef Generation generation = self.generation(member.recorded)
        cdef Py_ssize_t i, k = generation.best.kept.size
        cdef Entry *best = generation.best.kept.entries
        cdef Bits bits
        if not is_kept(&generation.worst, reversed_entry(member.entry)):
            return None
        if self.barrier and not generation.ranked:
            qsort(best, k, sizeof(Entry), &by_rank)
            generation.ranked = True
        bits = keyed(self.seed, DONOR, trial, 0, member.recorded)
        for _ in range(32):
            i = next_below(&bits, k)
            if generation.able(best[i]):
                return generation.gift(best[i])
        # Few of the best can give: look through them all.
        able = [i for i in range(k) if generation.able(best[i])]
        return generation.gift(best[<Py_ssize_t> able[next_below(&bits, len(able))]]) if able else None

    def advance(self, int64_t trial):
        """The waiting member goes on, decided on."""
        cdef Member *member = self.waiting(trial)
        cdef Generation generation = self.generation(member.recorded)
        generation.part(self.members, member)
        generation.decided += 1
        self.passed[member.passed] -= 1
        self.passed[member.recorded] += 1
        member.passed = member.recorded
        self.move_up()

    def leave(self, int64_t trial):
        """The member has ended for good and holds nobody up. It counts where it is recorded, and may still give."""
        cdef Member *member = self.member(trial)
        if member.gone:
            return
        self.arrived[member.recorded if member.waiting else member.passed] -= 1
        self.passed[member.passed] -= 1
        member.gone = True
        if member.waiting:
            self.generation(member.recorded).part(self.members, member)
        self.move_up()

    def released(self):
        """The checkpoints, since the last call, of depths that everyone not gone has passed: no decision needs them."""
        freed, self.freed = self.freed, []
        return freed

    def state(self):
        """All that answers depend on besides the arguments, as tuples and lists: equal ones will answer alike."""
        cdef Member *member
        cdef Generation generation
        cdef Py_ssize_t i
        members = []
        for i in range(self.population):
            member = &self.members[i]
            result = entry_state(member.entry) if member.recorded else None
            place = member.place if member.waiting else None
            members.append((result, member.recorded, member.passed, place, bool(member.gone)))
        generations = []
        for depth in sorted(self.generations):
            generation = self.generations[depth]
            saved = [
                (i, name, generation.steps[i]) for i, name in enumerate(generation.checkpoints) if name is not None
            ]
            waiting = [generation.waiting[i] for i in range(generation.num_waiting)]
            results = generation.n, split_state(&generation.best), split_state(&generation.worst)
            generations.append((depth, results, saved, waiting, generation.decided, bool(generation.queued)))
        first = None if self.first is None else self.first.depth
        return members, generations, first, heap_state(&self.queue), list(self.freed)


# --------------------------------------------------------------------------------------------- Parzen windows


cdef inline int make_room(Run *run) except -1 nogil:
    """Make room for one more observation."""
    cdef Py_ssize_t capacity = 2 * run.capacity if run.capacity else 4
    cdef Observation *entries
    if run.size < run.capacity:
        return 0
    entries = <Observation *> realloc(run.entries, capacity * sizeof(Observation))
    if not entries:
        raise MemoryError
    run.entries, run.capacity = entries, capacity
    return 0


cdef inline void insert_at(Run *run, Py_ssize_t i, const Observation observation) noexcept nogil:
    """Insert an observation, for which there is room."""
    memmove(&run.entries[i + 1], &run.entries[i], (run.size - i) * sizeof(Observation))
    run.entries[i] = observation
    run.size += 1


cdef inline void remove_at(Run *run, Py_ssize_t i) noexcept nogil:
    run.size -= 1
    memmove(&run.entries[i], &run.entries[i + 1], (run.size - i) * sizeof(Observation))


cdef inline Py_ssize_t place_by_trial(const Run *run, int64_t trial) noexcept nogil:
    """Where a trial is, or would be."""
    cdef Py_ssize_t low = 0, high = run.size, middle
    if high and run.entries[high - 1].trial < trial:
        return high
    while low < high:
        middle = (low + high) >> 1
        if run.entries[middle].trial < trial:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline Py_ssize_t place_by_value(const Run *run, const Observation observation) noexcept nogil:
    """Where an observation is, or would be, in the order of values; equal ones are in that of trials."""
    cdef Py_ssize_t low = 0, high = run.size, middle
    cdef const Observation *other
    while low < high:
        middle = (low + high) >> 1
        other = &run.entries[middle]
        if other.y < observation.y or (other.y == observation.y and other.trial < observation.trial):
            low = middle + 1
        else:
            high = middle
    return low


cdef inline Py_ssize_t place_of_cell(const Mixture *mixture, double index) noexcept nogil:
    """Where a cell is, or would be."""
    cdef Py_ssize_t low = 0, high = mixture.size, middle
    if high == 0 or index > mixture.cells[high - 1].index:
        return high
    # All have indices of their own, so that its place is known but for the gaps; where there is none, at once.
    low = <Py_ssize_t> max(0, high - 1 - (mixture.cells[high - 1].index - index))
    high = <Py_ssize_t> max(0, min(high, index - mixture.cells[0].index))
    while low < high:
        middle = (low + high) >> 1
        if mixture.cells[middle].index < index:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline void add_powers(double *sums, double t, double times) noexcept nogil:
    """Add t^k to the k-th sum, so many times."""
    cdef double even = times, odd = times * t, square = t * t
    cdef int k
    for k in range(0, TERMS, 2):
        sums[k] += even
        sums[k + 1] += odd
        even *= square
        odd *= square


cdef inline double offset(const Cell *cell, double y) noexcept nogil:
    return y - cell.index - 0.5


cdef inline Cell *cell_of(const Mixture *mixture, double y) noexcept nogil:
    """The cell that holds a kernel."""
    return &mixture.cells[place_of_cell(mixture, floor(y))]


cdef void shift(Mixture *mixture, Py_ssize_t i, double ranks) noexcept nogil:
    """The observations from the i-th on, by trial, have moved up or down by so many ranks."""
    cdef double y
    cdef Cell *cell
    for i in range(i, mixture.order.size):
        y = mixture.order.entries[i].y
        cell = cell_of(mixture, y)
        add_powers(cell.ranked, offset(cell, y), ranks)


cdef int open_cell(Mixture *mixture, Py_ssize_t c, double index) except -1 nogil:
    """Put a cell without members, and with room for one, at its place."""
    cdef Py_ssize_t capacity = 2 * mixture.capacity if mixture.capacity else 4
    cdef Cell *cells
    cdef Cell cell
    memset(&cell, 0, sizeof(Cell))
    cell.index = index
    if mixture.size == mixture.capacity:
        cells = <Cell *> realloc(mixture.cells, capacity * sizeof(Cell))
        if not cells:
            raise MemoryError
        mixture.cells, mixture.capacity = cells, capacity
    make_room(&cell.members)
    memmove(&mixture.cells[c + 1], &mixture.cells[c], (mixture.size - c) * sizeof(Cell))
    mixture.cells[c] = cell
    mixture.size += 1
    return 0


cdef int enter(Mixture *mixture, const Observation observation) except -1 nogil:
    """Add an observation of a trial that is not there."""
    cdef double index = floor(observation.y)
    cdef Py_ssize_t i = place_by_trial(&mixture.order, observation.trial), c = place_of_cell(mixture, index)
    cdef Cell *cell
    make_room(&mixture.order)
    if c == mixture.size or mixture.cells[c].index != index:
        open_cell(mixture, c, index)
    cell = &mixture.cells[c]
    make_room(&cell.members)
    shift(mixture, i, 1)
    insert_at(&mixture.order, i, observation)
    insert_at(&cell.members, place_by_value(&cell.members, observation), observation)
    add_powers(cell.plain, offset(cell, observation.y), 1)
    add_powers(cell.ranked, offset(cell, observation.y), i)
    return 0


cdef void leave(Mixture *mixture, int64_t trial) noexcept nogil:
    """Remove the observation of a trial, if it is there."""
    cdef Py_ssize_t i = place_by_trial(&mixture.order, trial), c
    cdef Observation observation
    cdef Cell *cell
    if i == mixture.order.size or mixture.order.entries[i].trial != trial:
        return
    observation = mixture.order.entries[i]
    c = place_of_cell(mixture, floor(observation.y))
    cell = &mixture.cells[c]
    add_powers(cell.plain, offset(cell, observation.y), -1)
    add_powers(cell.ranked, offset(cell, observation.y), -i)
    remove_at(&cell.members, place_by_value(&cell.members, observation))
    remove_at(&mixture.order, i)
    shift(mixture, i, -1)
    if cell.members.size == 0:  # what rounding has left of its sums goes with it
        free(cell.members.entries)
        mixture.size -= 1
        memmove(cell, cell + 1, (mixture.size - c) * sizeof(Cell))


cdef inline double slope(Py_ssize_t n) noexcept nogil:
    """By how much the weight of an old observation grows with its rank, of n."""
    return (1 - 1.0 / n) / (n - NEWEST - 1) if n > NEWEST + 1 else 0


cdef inline double faded(Py_ssize_t rank, Py_ssize_t n) noexcept nogil:
    """The weight of an old observation: from 1 / n to 1 (hyperopt's linear_forgetting_weights)."""
    return 1.0 / n + rank * slope(n)


cdef inline double weight(Py_ssize_t rank, Py_ssize_t n) noexcept nogil:
    return 1 if rank >= n - NEWEST else faded(rank, n)


cdef double[16] FACTORS  # 1 / k!
FACTORS[:] = [1 / math.factorial(k) for k in range(TERMS)]


cdef double reach(const Mixture *mixture, Py_ssize_t c, Py_ssize_t i) noexcept nogil:
    """The distance from a member of a cell to the farther one of its neighbours; the middle of the prior is one, too."""
    cdef const Cell *cell = &mixture.cells[c]
    cdef const Run *next
    cdef double y = cell.members.entries[i].y, below = -INFINITY, above = INFINITY
    if i > 0:
        below = cell.members.entries[i - 1].y
    elif c > 0:
        below = (cell - 1).members.entries[(cell - 1).members.size - 1].y
    if i + 1 < cell.members.size:
        above = cell.members.entries[i + 1].y
    elif c + 1 < mixture.size:
        above = (cell + 1).members.entries[0].y
    # It stands between two cells, ahead of its equals.
    if cell.index >= 0:
        below = max(below, 0)
    else:
        above = min(above, 0)
    return max(y - below if below > -INFINITY else 0, above - y if above < INFINITY else 0)


cdef int make_scratch(void **scratch, Py_ssize_t *room, Py_ssize_t needed, size_t size) except -1 nogil:
    cdef void *grown
    if needed > room[0]:
        grown = realloc(scratch[0], 2 * needed * size)
        if not grown:
            raise MemoryError
        scratch[0], room[0] = grown, 2 * needed
    return 0


cdef Py_ssize_t spread(Mixture *mixture, double prior_weight) except -1 nogil:
    """List the kernels that have to be summed one by one, and sum up the others; return how many are listed.

    A kernel is as wide as its farther neighbour is away, but at most as wide as the prior and at least a part of that
    (hyperopt's adaptive_parzen_normal). From FEW on that part is 1, our unit, which nearly all kernels have then: those go
    into the sums of their cells. The neighbour of a wider one is not in its cell, so that it is the first or the last there.
    """
    cdef Py_ssize_t n = mixture.order.size, count = 1, c, i, k, rank
    cdef bint few = n < FEW
    cdef double width, least = 100.0 / min(100, n + 2)
    cdef const Observation *one
    cdef Cell *cell
    cdef double *sums
    make_scratch(<void **> &mixture.kernels, &mixture.room, 1 + (n if few else 2 * mixture.size), sizeof(Kernel))
    mixture.kernels[0].weight, mixture.kernels[0].mean, mixture.kernels[0].width = prior_weight, 0, 100
    if not few:
        for c in range(mixture.size):
            cell = &mixture.cells[c]
            for k in range(TERMS):
                cell.sums[k] = cell.plain[k] / n + cell.ranked[k] * slope(n)
        for rank in range(n - NEWEST, n):
            one = &mixture.order.entries[rank]
            cell = cell_of(mixture, one.y)
            add_powers(cell.sums, offset(cell, one.y), 1 - faded(rank, n))
    for c in range(mixture.size):
        cell = &mixture.cells[c]
        i = 0
        while i < cell.members.size:
            one = &cell.members.entries[i]
            width = min(max(50 if n == 1 else reach(mixture, c, i), least), 100)
            if few or width > 1:
                rank = place_by_trial(&mixture.order, one.trial)
                mixture.kernels[count].weight = weight(rank, n)
                mixture.kernels[count].mean, mixture.kernels[count].width = one.y, width
                count += 1
                if not few:
                    add_powers(cell.sums, offset(cell, one.y), -weight(rank, n))
            i = i + 1 if few else max(i + 1, cell.members.size - 1)
        for k in range(TERMS):
            cell.sums[k] *= FACTORS[k]
    return count


cdef inline double expansion(const double *sums, int terms, double u) noexcept nogil:
    """The sum of so many terms: the k-th Hermite polynomial at u times the k-th of the sums."""
    cdef double before = 0, polynomial = 1, total = 0, next
    cdef int k
    for k in range(terms):
        total += sums[k] * polynomial
        next = u * polynomial - k * before
        before, polynomial = polynomial, next
    return total


cdef double height(const Mixture *mixture, Py_ssize_t count, double y) noexcept nogil:
    """The density at y, times the square root of 2 pi and the sum of the weights.

    The kernels of a cell are summed up by their expansion about its middle, exp(-(u - t)^2 / 2) = exp(-u^2 / 2) times the
    sum of t^k / k! He_k(u) (Greengard and Strain, "The fast Gauss transform", 1991): |t| <= 1/2, and so 16 terms leave
    less than 4e-12 of a kernel's height.
    """
    cdef double total = 0, u
    cdef Py_ssize_t i
    for i in range(count):
        u = (y - mixture.kernels[i].mean) / mixture.kernels[i].width
        if fabs(u) < 8.5:  # what is farther away is less than rounding
            total += mixture.kernels[i].weight / mixture.kernels[i].width * exp(-0.5 * u * u)
    if mixture.order.size >= FEW:
        for i in range(place_of_cell(mixture, floor(y) - 8), mixture.size):
            u = offset(&mixture.cells[i], y)
            if u < -8.5:
                break
            total += exp(-0.5 * u * u) * expansion(mixture.cells[i].sums, TERMS, u)
    return total


cdef inline double clipped(double u) noexcept nogil:
    # Beyond 9 the normal distribution is 0 or 1 but for rounding.
    return min(max(u, -9), 9)


cdef inline double normal_mass(double low, double high) noexcept nogil:
    return 0.5 * (erf(high * sqrt(0.5)) - erf(low * sqrt(0.5)))


cdef double mass(const Mixture *mixture, Py_ssize_t count, double low, double high) noexcept nogil:
    """The integral of the density from low to high, times the sum of the weights; by the same expansions."""
    cdef double total = 0, edges = 0, u, v
    cdef const double *sums
    cdef Py_ssize_t i
    for i in range(count):
        u = clipped((low - mixture.kernels[i].mean) / mixture.kernels[i].width)
        v = clipped((high - mixture.kernels[i].mean) / mixture.kernels[i].width)
        if u < v:
            total += mixture.kernels[i].weight * normal_mass(u, v)
    if mixture.order.size >= FEW:
        for i in range(place_of_cell(mixture, floor(low) - 9), mixture.size):
            u, v = clipped(offset(&mixture.cells[i], low)), clipped(offset(&mixture.cells[i], high))
            if v == -9:
                break
            sums = mixture.cells[i].sums
            total += sums[0] * normal_mass(u, v)
            edges += exp(-0.5 * u * u) * expansion(&sums[1], TERMS - 1, u)
            edges -= exp(-0.5 * v * v) * expansion(&sums[1], TERMS - 1, v)
    return total + edges / sqrt(2 * M_PI)


cdef double count_of(const Mixture *mixture, double option) noexcept nogil:
    """The weights of the observations of an option, summed up."""
    cdef Py_ssize_t c = place_of_cell(mixture, option), n = mixture.order.size, rank
    cdef double total
    if c == mixture.size or mixture.cells[c].index != option:
        return 0
    total = mixture.cells[c].plain[0] / n + mixture.cells[c].ranked[0] * slope(n)
    for rank in range(max(0, n - NEWEST), n):
        if mixture.order.entries[rank].y == option:
            total += 1 - faded(rank, n)
    return total


cdef inline double scaled(const Axis *axis, const Domain *domain, double x) noexcept nogil:
    """Where a value stands on its axis."""
    return ((log(x) if domain.kind == LOG else x) - axis.middle) / axis.unit


cdef inline double unscaled(const Axis *axis, const Domain *domain, double y) noexcept nogil:
    """The value of a domain that stands at y of its axis, or next to it."""
    cdef double x = axis.middle + axis.unit * y
    if domain.kind == LOG:
        x = exp(x)
    if domain.step > 0:
        return at(domain, rint(x / domain.step))
    return x if domain.kind == NORMAL else min(max(x, domain.low), domain.high)


cdef inline double joint_width(Py_ssize_t n, Py_ssize_t d) noexcept nogil:
    """Of n kernels in d dimensions."""
    return max(20 * pow(max(n, 1), -1.0 / (d + 4)), 100.0 / min(100, n + 2))


@cython.final
cdef class Parzen:
    """A tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011): for each hyperparameter the density of its values
    in the better trials, and that in the others, as hyperopt 0.3 has them (tpe.py).

    A kernel stands on each value and one, the prior, on the whole domain; the oldest of many values count less, old being
    trials with low numbers; a hyperparameter's values are those of the trials in which it is active. Where hyperopt leaves
    it to NumPy which of two equal values comes first, and so is the one with the farther neighbour, it is the one of the
    lower trial.

    table: the space, of at least one column. prior_weight: of the prior, a value's being 1; > 0. At most 25 trials may
    be the better ones, hyperopt's own limit.

    O(log n) for a suggestion. To put or drop a trial also takes O(k), where k trials with higher numbers are there, and a move
    of memory, O(n). Raises InvalidArgument if an argument breaks a rule, and changes nothing then.
    """

    def __cinit__(self, Table table not None, double prior_weight=1.0):
        cdef Domain *domain
        cdef Axis *axis
        cdef double low, high
        cdef Py_ssize_t j
        if not table.size:
            raise InvalidArgument("table must have at least one column, got none")
        if not 0 < prior_weight < INFINITY:
            raise InvalidArgument(f"prior_weight must be > 0 and finite, got {prior_weight!r}")
        self.table, self.prior_weight = table, prior_weight
        self.axes = <Axis *> calloc(table.size, sizeof(Axis))
        self.points = <double *> calloc(2 * table.size, sizeof(double))
        if not (self.axes and self.points):
            raise MemoryError
        for j in range(table.size):
            domain, axis = &table.columns[j], &self.axes[j]
            axis.unit, axis.low, axis.high = 1, -INFINITY, INFINITY
            for axis.leader in range(j + 1):
                if (table.columns[axis.leader].parent, table.columns[axis.leader].branch) == (domain.parent, domain.branch):
                    break
            self.axes[axis.leader].together += 1
            if domain.kind == CHOICE:
                continue
            if domain.kind == NORMAL:
                axis.middle, axis.unit = domain.low, domain.high / 100
                continue
            low, high = domain.low, domain.high
            if domain.step > 0:
                # Half a step more at either end, so that the ends are as likely as what lies between.
                low, high = at(domain, domain.first) - domain.step / 2, at(domain, domain.last) + domain.step / 2
            if domain.kind == LOG:
                low, high = log(low if low > 0 else domain.low), log(high)
            if not high - low < INFINITY:
                raise InvalidArgument(f"column {j}: high - low must be finite, got {domain.low} and {domain.high}")
            if low < high:
                axis.middle, axis.unit = 0.5 * (low + high), (high - low) / 100
                axis.low, axis.high = (low - axis.middle) / axis.unit, (high - axis.middle) / axis.unit
            else:  # two numbers that have one logarithm
                axis.middle, axis.low, axis.high = low, 0, 0

    def __dealloc__(self):
        cdef Mixture *mixture
        cdef Py_ssize_t j, c
        cdef int side
        for j in range(self.table.size if self.axes else 0):
            for side in range(2):
                mixture = &self.axes[j].sides[side]
                for c in range(mixture.size):
                    free(mixture.cells[c].members.entries)
                free(mixture.cells)
                free(mixture.order.entries)
                free(mixture.kernels)
        free(self.axes)
        free(self.points)

    def put(self, int64_t trial, const double[::1] row not None, bint better):
        """Have a trial, with its row (d,), count as one of the better or of the others, whatever it was before."""
        cdef Run *order = &self.axes[0].sides[1].order  # the first column is always active
        cdef Domain *domain
        cdef Observation observation
        cdef Py_ssize_t i, j
        if row.shape[0] != self.table.size:
            raise InvalidArgument(f"row must have length {self.table.size}, got {row.shape[0]}")
        for j in range(self.table.size):
            domain = &self.table.columns[j]
            if not active(domain, &row[0], 1):
                continue
            if not isfinite(row[j]) or (domain.kind == LOG and row[j] <= 0) or (
                domain.kind == CHOICE and not (0 <= row[j] <= domain.high and row[j] == floor(row[j]))
            ):
                raise InvalidArgument(f"column {j}: a value must be of its domain, got {row[j]}")
        if better and order.size == NEWEST:
            i = place_by_trial(order, trial)
            if i == order.size or order.entries[i].trial != trial:
                raise InvalidArgument(f"at most {NEWEST} trials may be the better ones, got one more: {trial}")
        self.forget(trial)
        try:
            for j in range(self.table.size):
                if active(&self.table.columns[j], &row[0], 1):
                    observation.y, observation.trial = scaled(&self.axes[j], &self.table.columns[j], row[j]), trial
                    enter(&self.axes[j].sides[better], observation)
        except MemoryError:
            self.forget(trial)
            raise

    def drop(self, int64_t trial):
        """Have a trial count no more, if it did."""
        self.forget(trial)

    cdef void forget(self, int64_t trial) noexcept nogil:
        cdef Py_ssize_t j
        for j in range(self.table.size):
            leave(&self.axes[j].sides[0], trial)
            leave(&self.axes[j].sides[1], trial)

    cdef double likelihood(self, Py_ssize_t j, int side, Py_ssize_t count, double x, double y) noexcept nogil:
        """How likely a value x, at y of its axis, is on one side, whose kernels are listed; but for a factor."""
        cdef const Axis *axis = &self.axes[j]
        cdef const Mixture *mixture = &axis.sides[side]
        cdef const Domain *domain = &self.table.columns[j]
        cdef double low
        if domain.kind == CHOICE:
            return self.prior_weight + count_of(mixture, x)
        if domain.step == 0:
            return height(mixture, count, y)
        low = x - domain.step / 2
        low = axis.low if domain.kind == LOG and low <= 0 else max(axis.low, scaled(axis, domain, low))
        return mass(mixture, count, low, min(axis.high, scaled(axis, domain, x + domain.step / 2)))

    cdef double propose(self, Py_ssize_t j, Bits *stream, int64_t candidates) except? -1 nogil:
        """Of so many draws from the better trials' density the one whose likelihood there is largest over that in the others."""
        cdef Axis *axis = &self.axes[j]
        cdef const Domain *domain = &self.table.columns[j]
        cdef Py_ssize_t n = axis.sides[1].order.size, others = 0, better = 0, i
        cdef double x, y, place, ratio, best = domain.low, most = -INFINITY
        if domain.kind != CHOICE:
            others, better = spread(&axis.sides[0], self.prior_weight), spread(&axis.sides[1], self.prior_weight)
        for _ in range(candidates):
            if domain.kind == CHOICE:
                place = next_uniform(stream) * (n + self.prior_weight * (domain.high + 1))
                if place < n:
                    x = axis.sides[1].order.entries[<Py_ssize_t> place].y
                else:
                    x = next_below(stream, <uint64_t> domain.high + 1)
                y = x
            elif axis.low < axis.high:
                while True:
                    place = next_uniform(stream) * (n + self.prior_weight)
                    i = 1 + <Py_ssize_t> place if place < n else 0
                    y = axis.sides[1].kernels[i].mean + axis.sides[1].kernels[i].width * normal_quantile(next_cell(stream))
                    if axis.low <= y < axis.high:
                        break
                x = unscaled(axis, domain, y)
            else:
                return domain.low
            if x == best and most > -INFINITY:  # on a grid and of options, often
                continue
            ratio = self.likelihood(j, 1, better, x, y) / max(self.likelihood(j, 0, others, x, y), 1e-300)
            if ratio > most:
                best, most = x, ratio
        return best

    cdef double joint_likelihood(self, Py_ssize_t first, int side, const double *point) noexcept nogil:
        """How likely a point of the columns that are active together is on one side; but for a factor."""
        cdef const Domain *domain
        cdef const Observation *entries
        cdef Py_ssize_t size = self.axes[first].sides[side].order.size, n = min(size, WINDOW), begin, count, i, j
        cdef double prior = self.prior_weight, kernel = 1, total = 0, options, penalty, t, width, least, more
        cdef double[256] distances  # of a block of kernels: the squares
        width = joint_width(n, self.axes[first].together)
        least, more = faded(0, max(n, 1)), slope(max(n, 1))
        for begin in range(0, n, 256):
            count = min(256, n - begin)
            for i in range(count):
                distances[i] = 0
            for j in range(first, self.table.size):
                domain, entries = &self.table.columns[j], &self.axes[j].sides[side].order.entries[size - n + begin]
                if self.axes[j].leader != first:
                    continue
                if domain.kind == CHOICE:
                    penalty = 2 * log(1 + (domain.high + 1) / self.prior_weight)
                    for i in range(count):
                        distances[i] += penalty * (entries[i].y != point[j])
                else:
                    for i in range(count):
                        t = (entries[i].y - point[j]) * (1 / width)
                        distances[i] += t * t
            for i in range(count):
                if distances[i] < 70:
                    total += (1 if begin + i >= n - NEWEST else least + (begin + i) * more) * exp(-0.5 * distances[i])
        for j in range(first, self.table.size):
            domain, options = &self.table.columns[j], self.table.columns[j].high + 1
            if self.axes[j].leader != first:
                continue
            if domain.kind == CHOICE:
                prior /= options
                kernel *= (1 + self.prior_weight / options) / (1 + self.prior_weight)
            else:
                kernel *= 100 / (width * sqrt(2 * M_PI))
                if domain.kind == NORMAL:
                    prior *= exp(-0.5e-4 * point[j] * point[j]) / sqrt(2 * M_PI)
        return prior + kernel * total

    cdef void draw_jointly(self, Py_ssize_t first, double *point, Bits *stream) noexcept nogil:
        """A point of the columns that are active together, from the better trials' density."""
        cdef const Domain *domain
        cdef const Axis *axis
        cdef Py_ssize_t n = self.axes[first].sides[1].order.size, j
        cdef double place = next_uniform(stream) * (n + self.prior_weight), width, mean
        cdef bint prior = place >= n
        width = joint_width(n, self.axes[first].together)
        for j in range(first, self.table.size):
            domain, axis = &self.table.columns[j], &self.axes[j]
            if self.axes[j].leader != first:
                continue
            mean = 0 if prior else min(max(axis.sides[1].order.entries[<Py_ssize_t> place].y, axis.low), axis.high)
            if domain.kind == CHOICE:
                if prior or next_uniform(stream) * (1 + self.prior_weight) >= 1:
                    mean = next_below(stream, <uint64_t> domain.high + 1)
                point[j] = mean
            elif prior and domain.kind == NORMAL:
                point[j] = 100 * normal_quantile(next_cell(stream))
            elif prior:
                point[j] = axis.low + (axis.high - axis.low) * next_uniform(stream)
            else:
                point[j] = mean
                while axis.low < axis.high:  # half of the kernel is inside, or more
                    point[j] = mean + width * normal_quantile(next_cell(stream))
                    if axis.low <= point[j] < axis.high:
                        break

    cdef void propose_jointly(self, Py_ssize_t first, double *row, Bits *stream, int64_t candidates) noexcept nogil:
        """As `propose`, for the columns that are active together with the first of them."""
        cdef double *point = self.points
        cdef double *best = self.points + self.table.size
        cdef double ratio, most = -INFINITY
        cdef Py_ssize_t j
        for _ in range(candidates):
            self.draw_jointly(first, point, stream)
            ratio = self.joint_likelihood(first, 1, point) / max(self.joint_likelihood(first, 0, point), 1e-300)
            if ratio > most:
                most = ratio
                memcpy(best, point, self.table.size * sizeof(double))
        for j in range(first, self.table.size):
            if self.axes[j].leader == first:
                row[j] = best[j] if self.table.columns[j].kind == CHOICE else unscaled(
                    &self.axes[j], &self.table.columns[j], best[j]
                )

    def suggest(self, seed, int64_t trial, int64_t candidates, bint joint=False):
        """A row (d,) float64 for a new trial, the same for equal arguments and equal trials that count.

        Column by column, parents first: of `candidates` draws, 1..10,000, from the density of the better trials the one at which
        that is largest over the density of the others. Column j draws from Stream(seed, SUGGEST, trial, j).

        joint: the columns that are active together have one density, and draw from the stream of the first of them. Its
        kernels are products (Falkner et al., ICML 2018), in each column as wide as in Optuna's multivariate TPE, 0.2
        n^(-1 / (d + 4)) of the prior; a choice keeps its option with weight 1, or has any with the weight of the prior. On a
        grid kernels are continuous, and rounded is what is suggested. The prior is the domain itself. Of more than 1,000 others
        the latest 1,000 count.
        """
        cdef uint64_t word = seed & 0xFFFFFFFFFFFFFFFF
        cdef Bits stream
        cdef Py_ssize_t j
        if not 1 <= candidates <= 10_000:
            raise InvalidArgument(f"candidates must be in 1..10000, got {candidates}")
        out = np.full(self.table.size, NAN)
        cdef double[::1] row = out
        for j in range(self.table.size):
            if not active(&self.table.columns[j], &row[0], 1):
                continue
            stream = keyed(word, SUGGEST, trial, j, 0)
            if not joint:
                row[j] = self.propose(j, &stream, candidates)
            elif self.axes[j].leader == j:
                self.propose_jointly(j, &row[0], &stream, candidates)
        return out

    def density(self, Py_ssize_t column, const double[::1] values not None, bint better):
        """The density (m,) float64 of a column at values (m,) of its domain, in the better trials or in the others.

        Of a domain on a grid and of options it is the probability of each. As hyperopt's, it is that of what the bounds let
        pass, but for a continuous LOG domain, where what they do not let pass counts, too.
        """
        cdef Domain *domain
        cdef Axis *axis
        cdef Py_ssize_t i, count
        cdef double total
        if not 0 <= column < self.table.size:
            raise InvalidArgument(f"column must be in 0..{self.table.size - 1}, got {column}")
        domain, axis = &self.table.columns[column], &self.axes[column]
        count = spread(&axis.sides[better], self.prior_weight)
        if domain.kind == CHOICE:
            total = self.prior_weight * domain.high + mass(&axis.sides[better], count, -INFINITY, INFINITY)
        elif domain.kind == LOG and domain.step == 0:
            total = mass(&axis.sides[better], count, -INFINITY, INFINITY)
        else:
            total = mass(&axis.sides[better], count, axis.low, axis.high)
        if domain.step == 0:
            total *= sqrt(2 * M_PI) * axis.unit
        out = np.empty(values.shape[0])
        cdef double[::1] densities = out
        for i in range(values.shape[0]):
            densities[i] = self.likelihood(column, better, count, values[i], scaled(axis, domain, values[i])) / total
            if domain.kind == LOG and domain.step == 0:
                densities[i] /= values[i]
        return out

    def state(self):
        """All that answers depend on besides the arguments, as tuples and lists: equal ones will answer alike, but for rounding."""
        cdef Run *order
        cdef Py_ssize_t i, j
        columns = []
        for j in range(self.table.size):
            sides = []
            for side in range(2):
                order = &self.axes[j].sides[side].order
                sides.append([(order.entries[i].trial, order.entries[i].y) for i in range(order.size)])
            columns.append(sides)
        return columns
