/* Load generator; see measure.py.
 *   load echo PORT CONNECTIONS BYTES MESSAGES   each connection sends a message after receiving the echo of the previous one
 *   load chat PORT MEMBERS LINES BURST          one member sends BURST lines at once, after all have received the previous ones
 * Prints `ready` once connected, waits for a line on standard input, then prints the number of messages or lines received
 * and the elapsed seconds. Exits with 1 if any are missing. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, LINE = 60 };

static char buffer[256 * 1024];
static int port, epoll;

struct peer {
    int fd;
    long got, sent;
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct peer *connect_peer(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct peer *peer = calloc(1, sizeof *peer);
    int one = 1;
    peer->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {EPOLLIN, {.ptr = peer}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, peer->fd, &event);
    return peer;
}

static void send_all(struct peer *peer, const char *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(peer->fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0) fail("send");
        bytes += sent;
        size -= (size_t)sent;
    }
}

static long receive(struct peer *peer) {
    ssize_t got = recv(peer->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got == 0) errno = ECONNRESET;
    if (got <= 0 && errno != EAGAIN) fail("recv");
    return got < 0 ? 0 : (long)got;
}

static void ready(void) {
    puts("ready");
    fflush(stdout);
    getchar();
}

static void echo(int connections, long size, long messages) {
    struct epoll_event events[EVENTS];
    char *message = malloc((size_t)size);
    memset(message, 'x', (size_t)size);
    long begun = 0, done = 0;
    struct peer **peers = calloc((size_t)connections, sizeof *peers);
    for (int at = 0; at < connections; at++) peers[at] = connect_peer();
    ready();
    double start = now();
    for (int at = 0; at < connections; at++) send_all(peers[at], message, (size_t)size), begun++;
    while (done < messages) {
        int count = epoll_wait(epoll, events, EVENTS, 10000);
        if (count <= 0) fail("no echo received");
        for (int at = 0; at < count; at++) {
            struct peer *peer = events[at].data.ptr;
            peer->got += receive(peer);
            if (peer->got < size) continue;
            peer->got = 0;
            done++;
            if (begun < messages) send_all(peer, message, (size_t)size), begun++;
        }
    }
    printf("%ld %f\n", done, now() - start);
}

/* Reads until `due` lines have been received in total, over all members. */
static void read_all(long *lines, long due) {
    struct epoll_event events[EVENTS];
    while (*lines < due) {
        int count = epoll_wait(epoll, events, EVENTS, 10000);
        if (count <= 0) fail("lines are missing");
        for (int at = 0; at < count; at++) {
            char *end = buffer + receive(events[at].data.ptr), *from = buffer;
            while (from < end && (from = memchr(from, '\n', (size_t)(end - from)))) from++, ++*lines;
        }
    }
}

/* Reads until nothing has been received for `quiet` milliseconds. */
static void settle(int quiet) {
    struct epoll_event events[EVENTS];
    int count;
    while ((count = epoll_wait(epoll, events, EVENTS, quiet)) > 0)
        for (int at = 0; at < count; at++) receive(events[at].data.ptr);
}

static void chat(int members, long lines, long burst) {
    char line[LINE];
    for (int at = 0; at < members - 1; at++) {
        connect_peer();
        /* Lets the server drain its accept queue. */
        if (at % 500 == 499) settle(100);
    }
    struct peer *speaker = connect_peer();
    settle(2000);
    memset(line, 'x', LINE);
    line[LINE - 1] = '\n';
    char *batch = malloc((size_t)(LINE * burst));
    for (long at = 0; at < burst; at++) memcpy(batch + at * LINE, line, LINE);
    long sent = 0, read = 0;
    ready();
    double start = now();
    while (sent < lines) {
        send_all(speaker, batch, (size_t)(LINE * burst));
        sent += burst;
        read_all(&read, sent * (members - 1));
    }
    printf("%ld %f\n", read, now() - start);
    if (read != sent * (members - 1)) exit(1);
}

int main(int count, char **args) {
    if (count != 6) return fprintf(stderr, "usage: see load.c\n"), 2;
    port = atoi(args[2]);
    epoll = epoll_create1(0);
    if (!strcmp(args[1], "echo")) echo(atoi(args[3]), atol(args[4]), atol(args[5]));
    else chat(atoi(args[3]), atol(args[4]), atol(args[5]));
    return 0;
}
