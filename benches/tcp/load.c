/* The clients of the measurements; see measure.py.
 *   load echo PORT CONNECTIONS BYTES MESSAGES   every connection sends a message when the one before came back
 *   load chat PORT MEMBERS LINES BURST          one member says lines, so many at once, when all have read those before
 * Prints `ready` once it is connected, waits for a line on standard input, and prints how many messages or lines came
 * and the seconds that took; exits with 1 when something is missing. */
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

static struct peer *call(void) {
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

static void say(struct peer *peer, const char *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(peer->fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0) fail("send");
        bytes += sent;
        size -= (size_t)sent;
    }
}

static long take(struct peer *peer) {
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
    for (int at = 0; at < connections; at++) peers[at] = call();
    ready();
    double start = now();
    for (int at = 0; at < connections; at++) say(peers[at], message, (size_t)size), begun++;
    while (done < messages) {
        int count = epoll_wait(epoll, events, EVENTS, 10000);
        if (count <= 0) fail("nothing comes back");
        for (int at = 0; at < count; at++) {
            struct peer *peer = events[at].data.ptr;
            peer->got += take(peer);
            if (peer->got < size) continue;
            peer->got = 0;
            done++;
            if (begun < messages) say(peer, message, (size_t)size), begun++;
        }
    }
    printf("%ld %f\n", done, now() - start);
}

/* Reads until so many lines have come, over all members. */
static void read_all(long *lines, long due) {
    struct epoll_event events[EVENTS];
    while (*lines < due) {
        int count = epoll_wait(epoll, events, EVENTS, 10000);
        if (count <= 0) fail("lines are missing");
        for (int at = 0; at < count; at++) {
            char *end = buffer + take(events[at].data.ptr), *from = buffer;
            while (from < end && (from = memchr(from, '\n', (size_t)(end - from)))) from++, ++*lines;
        }
    }
}

/* Reads until nothing has come for so many milliseconds. */
static void settle(int quiet) {
    struct epoll_event events[EVENTS];
    int count;
    while ((count = epoll_wait(epoll, events, EVENTS, quiet)) > 0)
        for (int at = 0; at < count; at++) take(events[at].data.ptr);
}

static void chat(int members, long lines, long burst) {
    char line[LINE];
    for (int at = 0; at < members - 1; at++) {
        call();
        /* Lets the server take its queue in. */
        if (at % 500 == 499) settle(100);
    }
    struct peer *speaker = call();
    settle(2000);
    memset(line, 'x', LINE);
    line[LINE - 1] = '\n';
    char *lump = malloc((size_t)(LINE * burst));
    for (long at = 0; at < burst; at++) memcpy(lump + at * LINE, line, LINE);
    long said = 0, read = 0;
    ready();
    double start = now();
    while (said < lines) {
        say(speaker, lump, (size_t)(LINE * burst));
        said += burst;
        read_all(&read, said * (members - 1));
    }
    printf("%ld %f\n", read, now() - start);
    if (read != said * (members - 1)) exit(1);
}

int main(int count, char **words) {
    if (count != 6) return fprintf(stderr, "see load.c\n"), 2;
    port = atoi(words[2]);
    epoll = epoll_create1(0);
    if (!strcmp(words[1], "echo")) echo(atoi(words[3]), atol(words[4]), atol(words[5]));
    else chat(atoi(words[3]), atol(words[4]), atol(words[5]));
    return 0;
}
