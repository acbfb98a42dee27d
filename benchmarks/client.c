/* The load that wrk does not make: big bodies both ways, a connection per request, idle connections, a fixed rate.
 *
 *   client MODE PORT HEAD_FILE BODY EXPECT CONNS SECONDS [RATE]
 *
 *   closed    CONNS connections, each sends its next request when the answer is whole
 *   connect   the same, but a new connection for each request, from 127.0.0.2 to .17 so that ports do not run out
 *   open      RATE requests a second at fixed times; latency counts from the time a request was due, so that a
 *             slow answer is not hidden by sending less (no coordinated omission)
 *   idle      CONNS connections, one request each; prints "ready" and holds them until standard input ends
 *
 * HEAD_FILE holds the bytes of the request head, BODY bytes follow it. Every answer is checked: status 200 and
 * EXPECT bytes by Content-Length, else it is an error. Prints one line of JSON; latencies are microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 65536, EVENTS = 256, KEEP = 4096, WINDOW = 1 };
enum mode { CLOSED, CONNECT, OPEN, IDLE };

struct conn {
    int fd;
    int busy;
    uint64_t since; /* when the request was sent, or due */
    uint64_t sent;  /* of head and body */
    uint64_t left;  /* of the answer's body */
    int in_body;
    int kept; /* bytes of an unfinished answer head */
    char head[KEEP];
};

static enum mode mode;
static struct conn **conns, **spare;
static int conns_wanted, spares, opened, closed_by_peer;
static char *request;
static uint64_t head_length, request_length, expect;
static struct sockaddr_in target = {.sin_family = AF_INET};
static int ep;
static uint64_t done, errors, finish, bytes;
static char last_error[160];

/* -- latency: exact below 256 µs, then 128 steps to each doubling: under 0.8 % of error -- */
enum { BITS = 8, STEPS = 1 << BITS, DOUBLINGS = 32 };
static uint64_t histogram[STEPS * DOUBLINGS], slowest;

static void note(uint64_t ns) {
    uint64_t us = ns / 1000;
    if (us > slowest) slowest = us;
    int shift = us < STEPS ? 0 : 63 - __builtin_clzll(us) - BITS + 1;
    uint64_t slot = shift ? (uint64_t)shift * (STEPS / 2) + (us >> shift) : us;
    if (slot >= STEPS * DOUBLINGS) slot = STEPS * DOUBLINGS - 1;
    histogram[slot]++;
}

static uint64_t value_of(uint64_t slot) {
    if (slot < STEPS) return slot;
    uint64_t shift = slot / (STEPS / 2) - 1;
    return (slot - shift * (STEPS / 2)) << shift;
}

static uint64_t percentile(double p) {
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < STEPS * DOUBLINGS; i++) total += histogram[i];
    for (int i = 0; i < STEPS * DOUBLINGS; i++) {
        seen += histogram[i];
        if (seen && seen >= p * total) return value_of(i);
    }
    return slowest;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void start(struct conn *c, uint64_t since);

static void dial(struct conn *c) {
    static unsigned turn;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) perror("client: socket"), exit(1);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (mode == CONNECT) { /* many source addresses: more ports than one has */
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + turn++ % 16);
        bind(c->fd, (struct sockaddr *)&from, sizeof from);
    }
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS)
        perror("client: connect"), exit(1);
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
}

static void again(struct conn *c) {
    close(c->fd);
    c->kept = c->in_body = 0;
    c->left = 0;
    dial(c);
}

static void failed(struct conn *c, const char *why, uint64_t now) {
    errors++;
    snprintf(last_error, sizeof last_error, "%s", why);
    if (errors > 1000) exit(1);
    again(c);
    if (mode == OPEN) {
        c->busy = 0;
        spare[spares++] = c;
    } else if (now < finish) {
        start(c, now);
    }
}

/* Send what the socket takes. */
static void push(struct conn *c, uint64_t now) {
    while (c->busy && c->sent < request_length) {
        ssize_t n = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINPROGRESS && errno != ENOTCONN) failed(c, "send failed", now);
            return;
        }
        c->sent += n;
    }
}

static void start(struct conn *c, uint64_t since) {
    c->busy = 1;
    c->since = since;
    c->sent = 0;
    push(c, since);
}

static void whole(struct conn *c, uint64_t now) {
    if (c->sent < request_length) return failed(c, "answered before the request was whole", now);
    done++;
    note(now - c->since);
    c->busy = c->kept = c->in_body = 0;
    if (mode == OPEN) {
        spare[spares++] = c;
    } else if (mode != IDLE && now < finish) {
        if (mode == CONNECT) again(c);
        start(c, now);
    }
}

/* Check the head at c->head; -1 wrong, 0 not whole, else its length. */
static int check(struct conn *c) {
    char *end = memmem(c->head, c->kept, "\r\n\r\n", 4);
    if (!end) return c->kept == KEEP - 1 ? -1 : 0;
    char after = end[2];
    end[2] = 0;
    char *length = strcasestr(c->head, "\ncontent-length:");
    int ok = !memcmp(c->head, "HTTP/1.1 200", 12) && length && strtoull(length + 16, NULL, 10) == expect;
    end[2] = after;
    if (!ok) {
        char line[128];
        snprintf(line, sizeof line, "wrong answer: %.60s", c->head);
        line[strcspn(line, "\r\n")] = 0;
        snprintf(last_error, sizeof last_error, "%s", line);
        return -1;
    }
    return end + 4 - c->head;
}

static void on_readable(struct conn *c, uint64_t now) {
    int fd = c->fd;
    for (;;) {
        ssize_t n;
        if (c->in_body) { /* thrown away in the kernel: no copy, and a large step */
            n = recv(fd, NULL, c->left, MSG_TRUNC);
            if (n > 0) {
                bytes += n;
                c->left -= n;
                if (!c->left) return whole(c, now);
                continue;
            }
        } else {
            n = recv(fd, c->head + c->kept, KEEP - 1 - c->kept, 0);
            if (n > 0) {
                if (!c->busy) return failed(c, "bytes nobody asked for", now);
                bytes += n;
                c->kept += n;
                c->head[c->kept] = 0;
                int head = check(c);
                if (head < 0) {
                    char why[160];
                    strcpy(why, last_error);
                    return failed(c, why, now);
                }
                if (!head) continue;
                uint64_t had = c->kept - head;
                if (had > expect) return failed(c, "answer too long", now);
                c->left = expect - had;
                c->in_body = 1;
                if (!c->left) return whole(c, now);
                continue;
            }
        }
        if (n < 0 && errno == EAGAIN) return;
        if (mode == IDLE && !c->busy) {
            closed_by_peer++;
            close(fd);
            return;
        }
        if (!c->busy) { /* a proxy may close between two requests */
            again(c);
            return;
        }
        return failed(c, n < 0 ? "connection reset" : "connection closed early", now);
    }
}

static void wait_until(uint64_t when) {
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns();
    struct timespec t = {0, 0};
    if (when > now) {
        t.tv_sec = (when - now) / 1000000000;
        t.tv_nsec = (when - now) % 1000000000;
    }
    int n = epoll_pwait2(ep, events, EVENTS, &t, NULL);
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (!c) continue;
        now = now_ns();
        int fd = c->fd;
        if (events[i].events & EPOLLOUT && c->busy && c->sent < request_length) push(c, now);
        if (c->fd == fd && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) on_readable(c, now);
    }
}

static void report(double seconds) {
    printf("{\"requests\": %lu, \"errors\": %lu, \"error\": \"%s\", \"seconds\": %.6f, \"bytes\": %lu, "
           "\"p50\": %lu, \"p90\": %lu, \"p99\": %lu, \"p999\": %lu, \"max\": %lu, \"closed\": %d}\n",
           done, errors, last_error, seconds, bytes, percentile(.5), percentile(.9), percentile(.99),
           percentile(.999), slowest, closed_by_peer);
    fflush(stdout);
}

static void run_closed(uint64_t begin) {
    for (int i = 0; i < conns_wanted; i++) start(conns[i], begin);
    while (now_ns() < finish) wait_until(finish);
}

static void run_open(uint64_t begin, double rate) {
    double interval = 1e9 / rate;
    uint64_t next = 0;
    for (int i = 0; i < conns_wanted; i++) spare[spares++] = conns[i];
    for (uint64_t now = now_ns(); now < finish; now = now_ns()) {
        uint64_t due = begin + (uint64_t)(next * interval);
        while (due <= now && spares) {
            start(spare[--spares], due);
            due = begin + (uint64_t)(++next * interval);
        }
        wait_until(spares ? due : finish);
    }
    /* what was due and never sent waited at least until now */
    for (uint64_t now = now_ns(); begin + (uint64_t)(next * interval) <= finish; next++)
        note(now - (begin + (uint64_t)(next * interval)));
}

static void run_idle(void) {
    while ((int)done < conns_wanted) {
        while (opened < conns_wanted && opened - (int)done < WINDOW) {
            dial(conns[opened]);
            start(conns[opened++], now_ns());
        }
        wait_until(now_ns() + 100000000);
        if (now_ns() > finish) fprintf(stderr, "client: only %lu of %d answered\n", done, conns_wanted), exit(1);
    }
    printf("ready\n");
    fflush(stdout);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(ep, EPOLL_CTL_ADD, 0, &ev);
    fcntl(0, F_SETFL, O_NONBLOCK);
    for (char c;;) {
        ssize_t n = read(0, &c, 1);
        if (n == 0) return;
        wait_until(now_ns() + 1000000000);
    }
}

int main(int argc, char **argv) {
    if (argc < 8) return fprintf(stderr, "usage: client MODE PORT HEAD_FILE BODY EXPECT CONNS SECONDS [RATE]\n"), 2;
    const char *modes[] = {"closed", "connect", "open", "idle"};
    for (mode = CLOSED; mode < IDLE && strcmp(modes[mode], argv[1]);) mode++;
    target.sin_port = htons(atoi(argv[2]));
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    uint64_t body = strtoull(argv[4], NULL, 10);
    expect = strtoull(argv[5], NULL, 10);
    conns_wanted = atoi(argv[6]);
    double seconds = atof(argv[7]), rate = argc > 8 ? atof(argv[8]) : 1000;

    int file = open(argv[3], O_RDONLY);
    request = malloc(65536 + body);
    ssize_t n = file < 0 ? -1 : read(file, request, 65536);
    if (n <= 0) return perror("client: head"), 1;
    head_length = n;
    memset(request + head_length, 'u', body);
    request_length = head_length + body;

    prctl(PR_SET_TIMERSLACK, 1);
    ep = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc(conns_wanted, sizeof *conns);
    spare = calloc(conns_wanted + 1, sizeof *spare);
    for (int i = 0; i < conns_wanted; i++) conns[i] = calloc(1, sizeof(struct conn));
    if (mode != IDLE)
        for (int i = 0; i < conns_wanted; i++) dial(conns[i]);
    uint64_t begin = now_ns();
    finish = begin + (uint64_t)(seconds * 1e9);
    if (mode == IDLE)
        run_idle();
    else if (mode == OPEN)
        run_open(begin, rate);
    else
        run_closed(begin);
    report((now_ns() - begin) / 1e9);
    return 0;
}
