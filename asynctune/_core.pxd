"""The core's interface: what a row, a stream and a heap are in C, and the helpers small enough to inline."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cpdef enum:  # what a stream is for: one more word of its key
    SAMPLE
    BRACKET
    ORDER
    DONOR
    EXPLORE
    SEED
    SUGGEST

cpdef enum:  # the kind of a domain
    LINEAR
    LOG
    NORMAL
    CHOICE
    ORDINAL


cdef struct Bits:
    uint64_t key
    uint64_t counter


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; variant 13 of Stafford's): a bijection."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL
    return x ^ (x >> 31)


cdef inline uint64_t absorb(uint64_t key, uint64_t word) noexcept nogil:
    """A key made of a key and one more word."""
    return mix((key + 0x9E3779B97F4A7C15ULL) ^ word)


cdef inline uint64_t next_bits(Bits *stream) noexcept nogil:
    """The next 64 bits: SplitMix64, started at the key."""
    stream.counter += 1
    return mix(stream.key + stream.counter * 0x9E3779B97F4A7C15ULL)


cdef inline double as_uniform(uint64_t bits) noexcept nogil:
    """The upper 53 bits as a number in [0, 1), a multiple of 2^-53."""
    return (bits >> 11) * (1.0 / 9007199254740992.0)


cdef inline double next_uniform(Bits *stream) noexcept nogil:
    """Uniform in [0, 1)."""
    return as_uniform(next_bits(stream))


cdef inline double next_cell(Bits *stream) noexcept nogil:
    """The middle of one of 2^52 cells of (0, 1): never 0, never 1."""
    return ((next_bits(stream) >> 12) + 0.5) / 4503599627370496.0


cdef inline uint64_t next_below(Bits *stream, uint64_t n) noexcept nogil:
    """Uniform in 0..n-1, for n >= 1; the first 2^64 mod n values are refused, so that none is more likely."""
    cdef uint64_t bits, refused = (0 - n) % n
    while True:
        bits = next_bits(stream)
        if bits >= refused:
            return bits % n


cdef inline Bits keyed(uint64_t seed, int64_t purpose, int64_t trial, int64_t segment, int64_t step) noexcept nogil:
    """The stream of a key, at its beginning."""
    cdef Bits stream
    stream.key = absorb(absorb(mix(seed + 0x9E3779B97F4A7C15ULL), <uint64_t> purpose), <uint64_t> trial)
    stream.key = absorb(absorb(stream.key, <uint64_t> segment), <uint64_t> step)
    stream.counter = 0
    return stream


cdef class Stream:
    cdef Bits bits


cdef struct Domain:
    uint8_t kind       # LINEAR, LOG, NORMAL, CHOICE or ORDINAL
    int32_t parent     # the column that switches this one on, or -1
    int32_t branch     # the parent's value that does
    double low         # the least value; NORMAL: the mean
    double high        # the greatest value; NORMAL: the standard deviation
    double step        # 0: continuous; else values are multiples of it
    double first       # the least value in steps, NORMAL: -inf
    double last        # the greatest value in steps, NORMAL: inf
    double log_low     # LOG: where the logarithm of a draw begins
    double log_range   # LOG: and how far it reaches
    double small       # below it, explore adds instead of multiplying


cdef class Table:
    cdef:
        readonly Py_ssize_t size    # d, the number of columns
        Domain *columns             # (d,)
        tuple arguments             # what it was made of, for pickling

    cdef void sample_row(self, double *row, Py_ssize_t stride, Bits *stream) noexcept nogil
    cdef void explore_rows(
        self, const double *rows, double *new, Py_ssize_t stride, const int64_t *donors, const int64_t *members,
        const uint64_t *keys, Py_ssize_t m, double resample_probability, double factor,
    ) noexcept nogil
    cdef int check_values(self, double[:, ::1] values) except -1


cdef struct Entry:       # one result; keys (score, arrival) are unique within an order
    double score         # oriented: larger is better, -inf is the worst
    int32_t arrival      # ties go to the lower one
    int32_t trial


cdef struct Heap:        # of four children a node, as many as fill a cache line; which end of the order is at its root is up to the caller
    Entry *entries       # (capacity,)
    Py_ssize_t size
    Py_ssize_t capacity


cdef struct Split:       # an order cut in two: the first k apart from the rest
    Heap kept            # the first k, the last of them at the root
    Heap others          # the rest, the first of them at the root


cdef inline bint before(const Entry a, const Entry b) noexcept nogil:
    # No score is NaN, so that >= will do for ==, whose test for NaN costs a branch.
    return a.score > b.score or (a.score >= b.score and a.arrival < b.arrival)


cdef inline bint is_kept(const Split *split, const Entry entry) noexcept nogil:
    """Whether an entry of this order is among the first k."""
    return split.kept.size > 0 and not before(split.kept.entries[0], entry)


cdef enum:               # how a trial stands with a rung: the low two bits of its position
    COMING               # on its way there, or to its bracket's first
    HELD                 # recorded there, and not beyond
    OFFERED              # and saved: it may be promoted


cdef struct Rung:
    Split results        # everything ever recorded here
    Heap waiting         # of the kept those OFFERED here, the best at the root; also some that were
    Py_ssize_t n         # how many results were recorded
    Py_ssize_t k         # how many of them are among the best
    int64_t short_of     # how many more results until there is one more


cdef class Ladder:
    cdef:
        readonly bint promotion       # the type of ASHA: promotion, else stopping
        bint minimize                 # whether smaller scores are better
        int64_t reduction_factor
        Py_ssize_t top                # how many levels there are
        int64_t levels[64]            # (top,) the step at which a rung is due
        Py_ssize_t brackets
        uint64_t weights[64]          # (brackets,) summed up: how often a trial is drawn into one up to this
        uint64_t seed                 # of those draws
        Rung *rungs                   # (brackets, top)
        uint8_t *position             # (capacity,) by trial: 4 r + COMING, HELD or OFFERED at rung r; or RETIRED
        Entry *latest                 # (capacity,) by trial: the result by which it is HELD. Promotion only
        Py_ssize_t capacity
        bint working                  # a call is at work without the GIL

    cdef int enter(self) except -1
    cdef int make_room(self, int64_t trial) except -1 nogil
    cdef Py_ssize_t bracket(self, int64_t trial) noexcept nogil
    cdef Rung *rung(self, int64_t trial, Py_ssize_t r) noexcept nogil
    cdef Py_ssize_t coming(self, int64_t trial) noexcept nogil
    cdef bint among_best(self, Py_ssize_t r, Entry *entry) except -1 nogil
    cdef bint decide(self, int32_t trial, int64_t step, double score, Entry *entry) except -1 nogil
    cdef int wait(self, int64_t trial, const Entry *entry) except -1 nogil
    cdef void go_on(self, int64_t trial) noexcept nogil
    cdef void settle(self, Rung *rung, Py_ssize_t r) noexcept nogil
    cdef Rung *find(self) noexcept nogil


cdef struct Member:
    Entry entry           # its last result
    int32_t recorded      # the depth of that result, in intervals
    int32_t passed        # the depth at which it was last decided on
    int32_t place         # where it stands among those that wait at that depth
    uint8_t waiting       # recorded, saved and not yet decided on
    uint8_t gone          # ended for good


cdef class Generation:
    cdef:
        readonly int32_t depth
        Py_ssize_t n          # how many results were recorded
        Split best
        Split worst           # the same results in reverse: keys (-score, -arrival)
        bint ranked           # the kept of `best` are in their order
        list checkpoints      # (room,) by arrival: its name, or None
        int64_t *steps        # (room,) by arrival: the step after which that was saved
        Py_ssize_t room
        int32_t *waiting      # (num_waiting,) members that wait here, in no order
        Py_ssize_t num_waiting
        Py_ssize_t capacity   # of `waiting`
        Py_ssize_t decided    # how many have gone on from here
        bint queued           # its depth is in the queue of Generations

    cdef int keep(self, Py_ssize_t arrival, str checkpoint, int64_t step) except -1
    cdef int join(self, Member *member) except -1
    cdef void part(self, Member *members, Member *member) noexcept
    cdef bint able(self, Entry entry)
    cdef tuple gift(self, Entry entry)


cdef class Generations:
    cdef:
        readonly Py_ssize_t population
        readonly bint barrier
        double quantile_fraction
        uint64_t seed
        Member *members               # (population,)
        int32_t *arrived              # (depths + 2,) how many, not gone, have arrived at a depth and not beyond
        int32_t *passed               # (depths + 2,) how many, not gone, were last decided on at a depth
        Py_ssize_t depths
        Py_ssize_t least_arrived      # the least depth at which `arrived` is not 0
        Py_ssize_t least_passed
        dict generations              # depth -> Generation
        Heap queue                    # the depths at which somebody waits, the least at the root; also some where nobody does
        Generation first              # the one at the queue's root, or None
        list freed                    # checkpoints not needed any more

    cdef Member *member(self, int64_t trial) except NULL
    cdef Member *waiting(self, int64_t trial) except NULL
    cdef Generation generation(self, int32_t depth)
    cdef int move_up(self) except -1


cdef enum:               # of the Parzen estimator
    NEWEST = 25          # so many observations have the full weight, and so many trials at most are the better ones
    FEW = 98             # up to here the least width of a kernel depends on how many there are
    WINDOW = 1000        # so many observations at most make a joint density
    TERMS = 16           # of the expansion of a kernel about the middle of its cell


cdef struct Observation:
    double y             # where the kernel stands, in hundredths of the prior's width from its middle; CHOICE: the option
    int64_t trial


cdef struct Run:         # observations in an order
    Observation *entries
    Py_ssize_t size
    Py_ssize_t capacity


cdef struct Cell:        # the kernels from index to index + 1, of width 1
    double index
    Run members          # by y, then trial
    double plain[16]     # (TERMS,) sums of t^k, where t is a member's place from the middle of the cell
    double ranked[16]    # (TERMS,) the same, each times the member's rank by trial
    double sums[16]      # (TERMS,) the same divided by k!, each times the member's weight; for a suggestion


cdef struct Kernel:
    double weight
    double mean
    double width


cdef struct Mixture:     # a density of one hyperparameter
    Run order            # all observations, by trial
    Cell *cells          # (size,) those that have a member, by index
    Py_ssize_t size
    Py_ssize_t capacity
    Kernel *kernels      # (room,) for `spread`
    Py_ssize_t room


cdef struct Axis:        # one hyperparameter as the estimator sees it
    double middle        # of the prior, in the logarithm where the domain is LOG
    double unit          # a hundredth of its width
    double low           # the bounds, in units from the middle; NORMAL: -inf, inf
    double high
    Py_ssize_t leader    # the first of the columns that are active together with this one
    Py_ssize_t together  # of a leader: how many these are
    Mixture sides[2]     # of the other trials, and of the better ones


cdef class Parzen:
    cdef:
        Table table
        double prior_weight
        Axis *axes                    # (d,)
        double *points                # (2, d) for `propose_jointly`

    cdef void forget(self, int64_t trial) noexcept nogil
    cdef double likelihood(self, Py_ssize_t j, int side, Py_ssize_t count, double x, double y) noexcept nogil
    cdef double propose(self, Py_ssize_t j, Bits *stream, int64_t candidates) except? -1 nogil
    cdef double joint_likelihood(self, Py_ssize_t first, int side, const double *point) noexcept nogil
    cdef void draw_jointly(self, Py_ssize_t first, double *point, Bits *stream) noexcept nogil
    cdef void propose_jointly(self, Py_ssize_t first, double *row, Bits *stream, int64_t candidates) noexcept nogil
