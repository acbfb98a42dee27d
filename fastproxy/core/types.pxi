# What the loop is made of. A connection that is idle owns this struct and nothing else; everything an exchange needs
# is taken from a freelist when its head is complete and given back when its record is written.
#
#   downstream Conn ──► Exchange ──► upstream Conn
#     input   bytes read but not consumed yet (partial head, pipelined requests)
#     output  bytes accepted for this peer that its socket did not take yet; while there are any, the source is not read

cdef enum Side:
    SIDE_LISTENER = 1
    SIDE_DOWN = 2
    SIDE_UP = 3
    SIDE_TIMER = 4
    SIDE_COMMAND = 5
    SIDE_WAKE = 6

cdef enum State:
    STATE_HEAD = 1                  # down: idle, or a head is being read
    STATE_EXCHANGE = 2              # both: an exchange is running
    STATE_FLUSH = 3                 # down: last bytes are on their way, then linger
    STATE_LINGER = 4                # down: write side shut down, input thrown away until the peer is done too
    STATE_TUNNEL = 5                # both: after 101
    STATE_CONNECTING = 6            # up
    STATE_IDLE = 7                  # up: in its pool

cdef enum ConnFlag:
    CONN_READABLE = 1               # an edge was seen and the socket is not drained yet
    CONN_FIN = 2                    # EPOLLRDHUP was seen: read until 0
    CONN_DEAD = 4                   # EPOLLERR or EPOLLHUP was seen: reset or closed both ways
    CONN_BLOCKED = 8                # a write came back short: EPOLLOUT resumes
    CONN_QUEUED = 16                # in the ready list
    CONN_CLOSED = 32                # in the graveyard until the batch of events is over
    CONN_REUSED = 64                # up: has answered a request before
    CONN_UNIX = 128                 # EPOLLOUT is asked for only while blocked: Unix sockets wake for every skb freed
    CONN_SEND_DEAD = 256            # up: takes no more bytes, but its answer may still be there
    CONN_HALF = 512                 # tunnel: our write side towards this peer is shut down
    CONN_FRESH = 1024               # down: no request yet
    CONN_EOF = 2048                 # 0 was read
    CONN_HEAD_TIMED = 4096          # down: the header timeout runs
    CONN_UNSCANNED = 8192           # down: `input` holds the start of the next request, not looked at yet
    CONN_RESET = 16384              # a call got ECONNRESET
    CONN_FAILED = 32768             # a call got an error that is told once, and recv says 0 from then on

cdef struct Timer:
    Timer *next
    Timer *prev                     # NULL: not in the wheel
    uint64_t due_ms                 # time of the slot it sits in
    uint64_t deadline_ms            # when it really is over; may move later without touching the wheel

cdef struct Chunk:                  # a buffer: header, then `size` bytes
    Chunk *next
    uint32_t size
    uint32_t at                     # data[at:end] is what is in it
    uint32_t end
    uint32_t is_large

cdef struct Listener:
    uint8_t side                    # SIDE_LISTENER; first, as in Conn
    uint8_t paused                  # not in epoll: out of descriptors or at the limit
    uint8_t closing
    uint8_t deferred                # left the last connection to workers that have fewer
    uint16_t family
    int fd
    uint32_t plan_index             # in the current plan; 0xFFFFFFFF: not there
    uint32_t connections
    uint32_t name_len
    char name[256]
    Listener *next

cdef struct Conn:
    uint8_t side                    # Side; first, so that an event can be told by its first byte
    uint8_t state                   # State
    uint16_t flags                  # ConnFlag
    int fd
    Timer timer
    Exchange *exchange
    Chunk *input
    Chunk *output
    Chunk *output_tail
    Conn *next                      # down: all connections; up: idle ones of the pool; graveyard
    Conn *prev
    Conn *ready                     # next in the ready list
    # down
    Listener *listener
    uint8_t address[16]             # of the peer
    uint16_t port
    uint16_t family
    # up
    uint32_t slot                   # of the endpoint, in live
    uint32_t idle_limit_ms          # from Keep-Alive: timeout=, else the setting
    uint64_t identity               # of the endpoint's address
    uint64_t total                  # up: bytes sent since it was opened; down, lingering: bytes thrown away
    uint64_t head_us                # down, with CONN_HEAD_TIMED: when the head that is not whole began

cdef enum ExchangeFlag:
    EX_KEEP_DOWN = 1                # downstream connection stays after this exchange
    EX_KEEP_UP = 2                  # upstream connection goes back to its pool
    EX_HEAD = 4                     # the request is HEAD
    EX_UPGRADE = 8                  # an upgrade was asked for and passed on
    EX_HTTP10 = 16                  # downstream speaks HTTP/1.0
    EX_EXPECT = 32                  # Expect: 100-continue was passed on
    EX_RETRIED = 128
    EX_DECHUNK = 256                # chunked upstream, HTTP/1.0 downstream
    EX_ANSWERED = 512               # final response head has been written
    EX_REQUEST_DONE = 1024          # the whole request was read and handed over
    EX_RESPONSE_DONE = 2048
    EX_JSON = 4096                  # Accept names JSON: errors are JSON
    EX_COUNTED = 8192               # active counters of cluster and endpoint hold this exchange
    EX_UPSTREAM_BYTES = 16384       # at least one byte of an answer came
    EX_IDEMPOTENT = 32768           # RFC 9110 §9.2.2
    EX_REQUEST_CUT = 131072         # the rest of the request is not wanted any more
    EX_OWN_ID = 262144              # X-Request-Id is ours

cdef struct Exchange:
    Conn *down
    Conn *up
    Plan *plan
    const Route *route
    const Destination *destination
    const Cluster *cluster
    const Endpoint *endpoint
    Chunk *head                     # the head as sent upstream (and first body bytes), kept until an answer begins
    Chunk *texts                    # strings of the record, when the access log is on
    uint32_t flags                  # ExchangeFlag
    uint32_t interim                # 1xx answers passed so far
    uint64_t deadline_ms            # of the route's timeout; 0: none
    # framing
    uint64_t request_left
    uint64_t response_left
    Chunked request_chunked
    Chunked response_chunked
    uint8_t request_framing
    uint8_t response_framing
    uint8_t method_id
    uint8_t minor
    uint16_t max_forwards           # one more than what is to be sent; 0: the field is not there
    # record
    uint8_t error
    uint8_t detail
    uint8_t attempts
    uint8_t upgraded
    uint16_t status
    uint16_t upstream_status
    uint32_t listener
    uint64_t start_us               # monotonic
    uint64_t start_real_us
    uint64_t sent_us                # request head handed to the upstream
    uint64_t sent_before            # Conn.total of the upstream connection before this request
    uint32_t upstream_us
    uint64_t received               # body bytes
    uint64_t sent
    uint16_t text_len[6]
    uint8_t request_id[16]
    uint8_t client[16]              # who asked, behind the trusted hops
    uint8_t client_family
    uint16_t client_port            # 0: not known
    # splice
    int pipe[2]
    uint32_t piped                  # bytes in the pipe

cdef enum Own:                      # fields that we write ourselves, unless header operations of the plan name them
    OWN_FORWARDED_FOR = 0
    OWN_FORWARDED_PROTO = 1
    OWN_FORWARDED_HOST = 2
    OWN_FORWARDED = 3
    OWN_REQUEST_ID = 4
    OWN_VIA = 5
    OWN_DATE = 6
    OWN_COUNT = 7

cdef struct Pool:                   # idle connections of one endpoint, newest first
    Conn *idle
    Conn *oldest
    uint64_t identity
    uint32_t count
    uint8_t http10                  # its last answer was HTTP/1.0

cdef struct Freelist:
    Chunk *first                    # chunks only; connections and exchanges use `spare`
    void *spare
    uint32_t kept
    uint32_t keep                   # ceiling of `kept`
    uint64_t out                    # taken and not given back

cdef enum:
    SMALL_CHUNK = 4096
    WHEEL_SLOTS = 4096
    WHEEL_SHIFT = 4                 # 16 ms a slot: 65 s a round
    EVENTS = 256                    # of one epoll_wait
    HEAD_ROOM = 2048                # what we may add to a head besides the plan's fields
    NO_INDEX = 0xFFFFFFFF

cdef struct Wheel:
    Timer *slots[WHEEL_SLOTS]
    uint64_t occupied[64]           # one bit a slot
    uint64_t now_slot               # every slot before it has been emptied
    uint64_t armed_ms               # what the timerfd will fire at; 0: not armed
    uint64_t wanted_ms              # earliest due time inserted since it was armed

cdef struct Options:
    uint64_t header_timeout
    uint64_t body_timeout
    uint64_t idle_timeout
    uint64_t write_timeout
    uint64_t half_close_timeout
    uint64_t connect_timeout
    uint64_t upstream_idle_timeout
    uint64_t upstream_read_timeout
    uint64_t tunnel_idle_timeout
    uint64_t max_body
    uint64_t max_connections
    uint32_t max_pooled
    uint32_t read_size
    uint32_t trusted_hops
    uint32_t tick_events
    uint64_t tick_us
    int slashes
    bint merge_slashes
    bint raw_path
    bint forwarded
    uint32_t via_len                # "Via: 1.1 name\r\n"
    char via[128]
    uint32_t server_len             # "server: name\r\n"
    char server[128]

cdef struct ErrorRow:
    uint16_t status
    uint8_t flag_len
    uint8_t message_len
    char flag[8]
    char message[116]

cdef struct Worker:
    int epfd
    int timerfd
    int wakefd
    int command_fd
    uint8_t timer_side              # SIDE_TIMER, SIDE_COMMAND, SIDE_WAKE: what their events point at
    uint8_t command_side
    uint8_t wake_side
    bint draining
    bint command_seen
    uint32_t index
    uint64_t now_ms                 # monotonic, read once per round
    uint64_t now_us
    uint64_t real_us
    uint64_t date_second
    char date[40]
    uint64_t random[2]
    Options options
    Limits request_limits
    Limits response_limits
    ErrorRow errors[128]
    Plan *plan
    LiveView live
    size_t live_size
    Ring ring
    size_t ring_size
    Wheel wheel
    Listener *listeners
    uint32_t listeners_closing      # ended, struct still there
    Conn *connections               # downstream, all
    uint64_t connection_count
    Conn *ready_first
    Conn *ready_last
    Conn *graveyard
    Pool *pools                     # by endpoint slot
    Freelist small
    Freelist large
    Freelist conns
    Freelist exchanges
    uint32_t large_size
    Chunk *kept                     # input that is being read in place; see down_scan_kept
    bint accept_paused
    Conn pacer                      # a timer that is no connection: try to accept again after descriptors ran out
    uint8_t *input                  # scratch for reads: a parked head and one read behind it
    uint8_t *output                 # scratch for heads on their way out
    uint32_t input_size
    uint32_t output_size
    uint8_t *path                   # scratch: normalised path, rewritten path
    Field own[OWN_COUNT]            # their names, as fields of a head that starts at `own_names`
    char own_names[128]
    uint32_t accept_hash
    uint32_t max_forwards_hash
    uint8_t drop_request[KNOWN_COUNT]
    uint8_t drop_response[KNOWN_COUNT]
    Head head
    epoll_event events[EVENTS]
    int spare_pipes[64][2]
    uint32_t spare_pipe_count
