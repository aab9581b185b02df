/* The floor: what the kernel itself takes for the same objects, and nothing of ours around it.
 *
 * Commands by line on stdin, run in the network namespace it is started in; one line with nanoseconds (or a number)
 * answers each. Sockets stay open; what is inside another namespace is done by setns(2), as the daemon does it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IFA_PROTO
#define IFA_PROTO 11
#endif
#define PROTOCOL 98 /* of addresses and routes, as ours have it */
#define ALIAS "bridgehead:00000000-0000-4000-8000-000000000000"

extern char **environ;
static int host_route, host_netfilter, host_netns;
static uint32_t sequence;
static char buffer[1 << 16];
static struct nlmsghdr *message;

static void die(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("error ", stdout);
    vprintf(format, values);
    printf(": %s\n", strerror(errno));
    va_end(values);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- messages */

static int opened(int family) {
    struct sockaddr_nl any = {.nl_family = AF_NETLINK};
    int made = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family), one = 1;
    if (made < 0 || bind(made, (struct sockaddr *)&any, sizeof any))
        die("netlink socket");
    setsockopt(made, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    return made;
}

static void *begin(int kind, int flags, const void *body, size_t size) {
    message = (struct nlmsghdr *)buffer;
    message->nlmsg_type = kind;
    message->nlmsg_flags = NLM_F_REQUEST | flags;
    message->nlmsg_seq = ++sequence;
    message->nlmsg_pid = 0;
    message->nlmsg_len = NLMSG_LENGTH(size);
    memcpy(NLMSG_DATA(message), body, size);
    return NLMSG_DATA(message);
}

static struct rtattr *put(int kind, const void *value, size_t size) {
    struct rtattr *made = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));
    made->rta_type = kind;
    made->rta_len = RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(made), value, size);
    message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + RTA_ALIGN(made->rta_len);
    return made;
}

static void put_text(int kind, const char *text) { put(kind, text, strlen(text) + 1); }
static void put_number(int kind, uint32_t number) { put(kind, &number, sizeof number); }
static void finish(struct rtattr *nest) { nest->rta_len = (char *)message + message->nlmsg_len - (char *)nest; }

/* Waits for the acknowledgement, or a dump's end; the peer's index where a new link is echoed. */
static int answered(int connection, uint32_t wanted, const char *what) {
    static char data[1 << 18];
    int peer = 0;
    for (;;) {
        ssize_t got = recv(connection, data, sizeof data, 0);
        if (got < 0)
            die("%s", what);
        for (struct nlmsghdr *one = (struct nlmsghdr *)data; NLMSG_OK(one, got); one = NLMSG_NEXT(one, got)) {
            if (one->nlmsg_seq != wanted)
                continue;
            if (one->nlmsg_type == NLMSG_DONE)
                return peer;
            if (one->nlmsg_type == NLMSG_ERROR) {
                errno = -((struct nlmsgerr *)NLMSG_DATA(one))->error;
                if (errno)
                    die("%s", what);
                return peer;
            }
            if (one->nlmsg_type == RTM_NEWLINK) {
                int left = IFLA_PAYLOAD(one);
                for (struct rtattr *a = IFLA_RTA(NLMSG_DATA(one)); RTA_OK(a, left); a = RTA_NEXT(a, left))
                    if (a->rta_type == IFLA_LINK)
                        peer = *(int *)RTA_DATA(a);
            }
        }
    }
}

static int sent(int connection, const char *what) {
    if (send(connection, buffer, message->nlmsg_len, 0) < 0)
        die("%s", what);
    return answered(connection, sequence, what);
}

/* --- links, addresses, routes */

static void set_link(int connection, int index, const char *alias, int up) {
    struct ifinfomsg body = {.ifi_index = index, .ifi_flags = up ? IFF_UP : 0, .ifi_change = up ? IFF_UP : 0};
    begin(RTM_NEWLINK, NLM_F_ACK, &body, sizeof body);
    if (alias)
        put(IFLA_IFALIAS, alias, strlen(alias));
    sent(connection, "set link");
}

static void add_address(int connection, int index, in_addr_t address, int prefix) {
    struct ifaddrmsg body = {.ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = index};
    in_addr_t broadcast = address | htonl(~(~0u << (32 - prefix)));
    uint8_t protocol = PROTOCOL;
    begin(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    put(IFA_LOCAL, &address, sizeof address);
    put(IFA_ADDRESS, &address, sizeof address);
    put(IFA_BROADCAST, &broadcast, sizeof broadcast);
    put(IFA_PROTO, &protocol, sizeof protocol);
    sent(connection, "add address");
}

static void add_default_route(int connection, int index, in_addr_t gateway) {
    struct rtmsg body = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = PROTOCOL,
                         .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
    begin(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    put(RTA_GATEWAY, &gateway, sizeof gateway);
    put_number(RTA_OIF, index);
    sent(connection, "add default route");
}

static void bridge(const char *name, in_addr_t gateway, int prefix) {
    struct ifinfomsg body = {0};
    begin(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    put_text(IFLA_IFNAME, name);
    struct rtattr *info = put(IFLA_LINKINFO, NULL, 0);
    put_text(IFLA_INFO_KIND, "bridge");
    finish(info);
    sent(host_route, "add bridge");
    add_address(host_route, if_nametoindex(name), gateway, prefix);
    set_link(host_route, if_nametoindex(name), NULL, 1);
}

static void put_peer(const char *name, int netns) {
    static uint32_t number;
    struct ifinfomsg body = {0};
    uint8_t mac[6] = {0x02, 0xfb, number >> 24, number >> 16, number >> 8, number};
    number++;
    struct rtattr *info = put(IFLA_LINKINFO, NULL, 0);
    put_text(IFLA_INFO_KIND, "veth");
    struct rtattr *data = put(IFLA_INFO_DATA, NULL, 0), *peer = put(VETH_INFO_PEER, &body, sizeof body);
    put_text(IFLA_IFNAME, name);
    put(IFLA_ADDRESS, mac, sizeof mac);
    put_number(IFLA_MTU, 1500);
    put_number(IFLA_NET_NS_FD, netns);
    put_number(IFLA_NUM_TX_QUEUES, 1);
    put_number(IFLA_NUM_RX_QUEUES, 1);
    finish(peer), finish(data), finish(info);
}

static void attach(const char *master, const char *name, const char *path, const char *inside, in_addr_t address,
                   int prefix, in_addr_t gateway, int group) {
    struct ifinfomsg body = {0};
    int netns = open(path, O_RDONLY | O_CLOEXEC);
    if (netns < 0)
        die("%s", path);
    begin(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, &body, sizeof body);
    put_text(IFLA_IFNAME, name);
    put_number(IFLA_MTU, 1500);
    put_number(IFLA_GROUP, group);
    put_number(IFLA_MASTER, if_nametoindex(master));
    put_number(IFLA_NUM_TX_QUEUES, 1);
    put_number(IFLA_NUM_RX_QUEUES, 1);
    put_peer(inside, netns);
    int peer = sent(host_route, "add veth"), index = if_nametoindex(name);
    set_link(host_route, index, ALIAS, 0);
    set_link(host_route, index, NULL, 1);
    if (setns(netns, CLONE_NEWNET))
        die("setns");
    int inner = opened(NETLINK_ROUTE);
    if (!peer) /* before Linux 6.2 */
        peer = if_nametoindex(inside);
    if (setns(host_netns, CLONE_NEWNET))
        die("setns");
    set_link(inner, peer, ALIAS, 0);
    add_address(inner, peer, address, prefix);
    set_link(inner, peer, NULL, 1);
    add_default_route(inner, peer, gateway);
    close(inner);
    close(netns);
}

/* What `ip netns add` does, with lo up. */
static void make_netns(const char *path) {
    int made = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    if (made < 0 || close(made) || unshare(CLONE_NEWNET))
        die("%s", path);
    int inner = opened(NETLINK_ROUTE);
    set_link(inner, 1, ALIAS, 1);
    close(inner);
    if (mount("/proc/thread-self/ns/net", path, "none", MS_BIND, NULL) || setns(host_netns, CLONE_NEWNET))
        die("%s", path);
}

static void delete_link(const char *name, int group) {
    struct ifinfomsg body = {.ifi_index = name ? if_nametoindex(name) : 0};
    begin(RTM_DELLINK, NLM_F_ACK, &body, sizeof body);
    if (!name)
        put_number(IFLA_GROUP, group);
    sent(host_route, "delete link");
}

/* --- nf_tables, conntrack */

static void put_value(int kind, const uint32_t value[2]) {
    struct rtattr *nest = put(kind | NLA_F_NESTED, NULL, 0);
    put(NFTA_DATA_VALUE, value, 8);
    finish(nest);
}

/* One element of a map `inet_proto . inet_service : ipv4_addr . inet_service`, one transaction. */
static void element(int add, const char *table, const char *map, int protocol, int port, in_addr_t to, int to_port) {
    struct nfgenmsg batch = {.version = NFNETLINK_V0, .res_id = htons(NFNL_SUBSYS_NFTABLES)};
    struct nfgenmsg body = {.nfgen_family = AF_INET, .version = NFNETLINK_V0};
    uint32_t key[2] = {protocol, htons(port)}, value[2] = {to, htons(to_port)};
    size_t size = NLMSG_LENGTH(sizeof batch);
    char parts[3][256];
    begin(NFNL_MSG_BATCH_BEGIN, 0, &batch, sizeof batch);
    memcpy(parts[0], buffer, size);
    begin(NFNL_MSG_BATCH_END, 0, &batch, sizeof batch);
    memcpy(parts[2], buffer, size);
    int kind = NFNL_SUBSYS_NFTABLES << 8 | (add ? NFT_MSG_NEWSETELEM : NFT_MSG_DELSETELEM);
    begin(kind, NLM_F_ACK | (add ? NLM_F_CREATE | NLM_F_EXCL : 0), &body, sizeof body);
    put_text(NFTA_SET_ELEM_LIST_TABLE, table);
    put_text(NFTA_SET_ELEM_LIST_SET, map);
    struct rtattr *list = put(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, NULL, 0);
    struct rtattr *one = put(1 | NLA_F_NESTED, NULL, 0);
    put_value(NFTA_SET_ELEM_KEY, key);
    if (add)
        put_value(NFTA_SET_ELEM_DATA, value);
    finish(one), finish(list);
    struct iovec pieces[3] = {{parts[0], size}, {buffer, message->nlmsg_len}, {parts[2], size}};
    struct msghdr whole = {.msg_iov = pieces, .msg_iovlen = 3};
    if (sendmsg(host_netfilter, &whole, 0) < 0)
        die("element");
    answered(host_netfilter, sequence, "element");
}

static void dump_conntrack(void) {
    struct nfgenmsg body = {.nfgen_family = AF_INET, .version = NFNETLINK_V0};
    begin(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NLM_F_DUMP, &body, sizeof body);
    sent(host_netfilter, "conntrack");
}

/* --- commands */

/* A command, found in PATH: its input and output are files. */
static void run(const char *input, const char *output, char *words) {
    char *arguments[64], *rest;
    int count = 0, status;
    pid_t child;
    posix_spawn_file_actions_t files;
    for (char *word = strtok_r(words, " ", &rest); word && count < 63; word = strtok_r(NULL, " ", &rest))
        arguments[count++] = word;
    arguments[count] = NULL;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, input, O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if ((errno = posix_spawnp(&child, arguments[0], &files, NULL, arguments, environ)))
        die("%s", arguments[0]);
    if (waitpid(child, &status, 0) < 0 || status)
        die("%s: status %d", arguments[0], status);
    posix_spawn_file_actions_destroy(&files);
}

/* Endpoints by the number: names, addresses and namespaces count up; `make`: the namespaces too. */
static void build(const char *master, const char *directory, const char *first, int prefix, in_addr_t gateway,
                  int group, int count, int make) {
    char name[16], path[280];
    for (int number = 0; number < count; number++) {
        snprintf(name, sizeof name, "f%d", number);
        snprintf(path, sizeof path, "%s/f%d", directory, number);
        if (make)
            make_netns(path);
        attach(master, name, path, "eth0", htonl(ntohl(inet_addr(first)) + number), prefix, gateway, group);
    }
}

static int obeyed(char *line) {
    char a[64], b[64], c[256], d[256], e[64], f[64];
    int n, m, k, make;
    if (sscanf(line, "bridge %63s %63s %d", a, b, &n) == 3)
        bridge(a, inet_addr(b), n);
    else if (sscanf(line, "netns %255s", c) == 1)
        make_netns(c);
    else if (sscanf(line, "attach %63s %63s %255s %63s %63s %d %63s %d", a, b, c, d, e, &n, f, &m) == 8)
        attach(a, b, c, d, inet_addr(e), n, inet_addr(f), m);
    else if (sscanf(line, "build %63s %255s %63s %d %63s %d %d %d", a, c, d, &n, e, &m, &k, &make) == 8)
        build(a, c, d, n, inet_addr(e), m, k, make);
    else if (sscanf(line, "delete %63s", a) == 1)
        delete_link(a, 0);
    else if (sscanf(line, "group %d", &n) == 1)
        delete_link(NULL, n);
    else if (sscanf(line, "element %63s %63s %63s %d %d %63s %d", a, b, d, &n, &m, e, &k) == 7)
        element(!strcmp(a, "add"), b, d, n, m, inet_addr(e), k);
    else if (!strncmp(line, "run ", 4))
        run("/dev/null", "/dev/null", line + 4);
    else if (sscanf(line, "pipe %255s %255s %n", c, d, &n) == 2)
        run(c, d, line + n);
    else if (sscanf(line, "set %63s %255s", a, c) == 2)
        setenv(a, c, 1);
    else if (!strcmp(line, "conntrack"))
        dump_conntrack();
    else
        return 0;
    return 1;
}

int main(int count, char **arguments) {
    static char line[4096];
    if (count > 1 && !strcmp(arguments[1], "pause")) /* a container's only process */
        for (;;)
            pause();
    host_netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    host_route = opened(NETLINK_ROUTE);
    host_netfilter = opened(NETLINK_NETFILTER);
    mkdir("/run/netns", 0755);
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        uint64_t start = now();
        if (!obeyed(line)) {
            errno = EINVAL;
            die("%s", line);
        }
        printf("%llu\n", (unsigned long long)(now() - start));
    }
    return 0;
}
