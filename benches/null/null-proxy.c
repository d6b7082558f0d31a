// Baseline for reverse proxies: edge-triggered epoll, one connection to the upstream per client connection,
// bytes are forwarded unchanged and not parsed.  Usage: null-proxy PORT UPSTREAM_PORT
#include "null.h"
#include <sys/epoll.h>

static int peer_of[MAX_FD];

static void add(int ep, int fd) {
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static int dial(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) { perror("connect"); exit(1); }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

// Forwards what has arrived. Assumes messages smaller than `buf` and than the buffers of the sockets.
static void forward(int fd, int ended) {
    static char buf[65536];
    ssize_t got = recv(fd, buf, sizeof buf, 0);
    if (got > 0 && send(peer_of[fd], buf, got, MSG_NOSIGNAL) == got && !ended) return;
    if (got < 0 && errno == EAGAIN && !ended) return;
    close(peer_of[fd]);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc != 3) { fprintf(stderr, "usage: %s PORT UPSTREAM_PORT\n", argv[0]); return 2; }
    int upstream = atoi(argv[2]), listener = null_listen(2, argv), ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[512];
    add(ep, listener);
    for (;;) {
        int n = epoll_wait(ep, events, 512, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd, client;
            if (fd != listener) {
                forward(fd, events[i].events & (EPOLLRDHUP | EPOLLHUP));
                continue;
            }
            while ((client = null_accept(listener)) >= 0) {
                int server = dial(upstream);
                if (client >= MAX_FD || server >= MAX_FD) return 1;
                peer_of[client] = server;
                peer_of[server] = client;
                add(ep, client);
                add(ep, server);
            }
        }
    }
}
