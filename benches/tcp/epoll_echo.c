/* Minimal echo server: edge-triggered epoll, one buffer, only the necessary system calls.
 * The baseline for `serverd echo`; see measure.py. Prints its port on a line. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 64 * 1024, EVENTS = 1024 };

struct peer {
    int fd, ended;
    size_t len; /* unsent bytes; reading pauses while there are any */
    char *unsent;
};

static char buffer[BUFFER];

static void close_peer(struct peer *peer) {
    close(peer->fd);
    free(peer->unsent);
    free(peer);
}

static void echo(struct peer *peer, int epoll) {
    for (;;) {
        char *from = buffer;
        ssize_t got;
        if (peer->len) {
            ssize_t sent = send(peer->fd, peer->unsent, peer->len, MSG_NOSIGNAL);
            if (sent < 0 && errno == EAGAIN) return;
            if (sent < 0) return close_peer(peer);
            memmove(peer->unsent, peer->unsent + sent, peer->len -= (size_t)sent);
            if (peer->len) continue;
        }
        if (peer->ended) return close_peer(peer);
        got = recv(peer->fd, buffer, BUFFER, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got < 0) return close_peer(peer);
        if (got == 0) {
            peer->ended = 1;
            continue;
        }
        ssize_t sent = send(peer->fd, from, (size_t)got, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return close_peer(peer);
        if (sent < 0) sent = 0;
        if (sent < got) {
            if (!peer->unsent) peer->unsent = malloc(BUFFER);
            memcpy(peer->unsent, buffer + sent, peer->len = (size_t)(got - sent));
            return;
        }
        /* A short read emptied the socket: new data is a new edge. */
        if (got < BUFFER) return;
    }
}

static void accept_all(int listener, int epoll) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        struct peer *peer = calloc(1, sizeof *peer);
        peer->fd = fd;
        struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.ptr = peer}};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) return perror("listen"), 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    struct epoll_event event = {EPOLLIN | EPOLLET, {.ptr = NULL}}, events[EVENTS];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int at = 0; at < count; at++) {
            if (events[at].data.ptr) echo(events[at].data.ptr, epoll);
            else accept_all(listener, epoll);
        }
    }
}
