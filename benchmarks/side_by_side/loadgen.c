// Closed-loop HTTP/1.1 load on an OpenAI-compatible server, from one thread on epoll.
//
//   loadgen -P PORT -b BODIES.jsonl [-u PATH] [-c CONNECTIONS] [-w WARM_S] [-d MEASURE_S]
//           [-s STAGGER_S] [-p PID,PID,...] [-q]
//
// Every connection keeps one request in flight. BODIES holds one JSON body per line; each is sent once, and
// running out of them is an error (exit status 3), because a server that sees a body twice may answer from a
// cache. -q acknowledges received data at once (TCP_QUICKACK); without it the kernel delays its
// acknowledgements as it does for any client. -s spreads the first requests over that many seconds.
// The CPU time of a process is the sum of its threads' /proc/PID/task/*/schedstat.
//
// Everything is counted when it happens inside the window, whenever its request began. TTFT runs to the
// first event with text in it; gaps lie between later events. Prints one JSON object.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 8192, MAX_PIDS = 64, MAX_EVENTS = 256, BODIES_EXHAUSTED = 3 };
enum phase { WAITING, READING_HEAD, READING_BODY };
enum chunk_part { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

typedef struct { float *items; size_t count, room; } samples;
typedef struct { char *text; size_t length; } body_line;

typedef struct {
  int fd, status, is_chunked, num_head, num_digits, num_in_line, is_data_line, match, has_text;
  enum phase phase;
  enum chunk_part part;
  size_t num_sent, num_head_out;
  long num_left;  // bytes of the body, or of the chunk, still to come
  const body_line *body;
  double sent_at, event_at;
  char head_out[256], head[MAX_HEAD], digits[32], line[8];
} connection;

static const char *path = "/v1/chat/completions", *TEXT = "\"content\":\"";
static int port, poller, is_quick_ack, is_measuring, num_pids, pids[MAX_PIDS];
static body_line *bodies;
static size_t num_bodies, next_body, body_room;
static samples latency_ms, ttft_ms, gap_ms;
static long num_done, num_errors, num_events, num_reconnects, num_bytes, num_tied;
static char last_error[256];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void add(samples *s, double value) {
  if (s->count == s->room) {
    s->room = s->room ? 2 * s->room : 1 << 16;
    s->items = realloc(s->items, s->room * sizeof *s->items);
  }
  s->items[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void print_quantiles(const char *name, samples *s) {
  static const double ranks[] = {0.5, 0.9, 0.99, 1.0};
  static const char *labels[] = {"p50", "p90", "p99", "max"};
  if (s->count) qsort(s->items, s->count, sizeof *s->items, ascending);
  for (int i = 0; i < 4; i++) {
    if (s->count) printf("\"%s_%s\":%.4f,", name, labels[i], s->items[(size_t)(ranks[i] * (s->count - 1) + 0.5)]);
    else printf("\"%s_%s\":null,", name, labels[i]);
  }
}

static double cpu_s(int pid) {
  char name[300];
  double total_ns = 0, ns;
  snprintf(name, sizeof name, "/proc/%d/task", pid);
  DIR *tasks = opendir(name);
  if (!tasks) return 0;
  for (struct dirent *task; (task = readdir(tasks));) {
    if (task->d_name[0] == '.') continue;
    snprintf(name, sizeof name, "/proc/%d/task/%.20s/schedstat", pid, task->d_name);
    FILE *file = fopen(name, "r");
    if (!file) continue;
    if (fscanf(file, "%lf", &ns) == 1) total_ns += ns;
    fclose(file);
  }
  closedir(tasks);
  return total_ns * 1e-9;
}

static double own_cpu_s(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static void load_bodies(const char *name) {
  FILE *file = fopen(name, "r");
  if (!file) { perror(name); exit(2); }
  char *line = NULL;
  size_t room = 0;
  ssize_t length;
  while ((length = getline(&line, &room, file)) > 0) {
    while (length && line[length - 1] == '\n') length--;
    if (!length) continue;
    if (num_bodies == body_room) {
      body_room = body_room ? 2 * body_room : 1024;
      bodies = realloc(bodies, body_room * sizeof *bodies);
    }
    char *text = malloc(length);
    memcpy(text, line, length);
    bodies[num_bodies++] = (body_line){text, length};
  }
  free(line);
  fclose(file);
}

static void watch(connection *c, int events, int operation) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(poller, operation, c->fd, &e);
}

static void dial(connection *c) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  int on = 1;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  connect(c->fd, (struct sockaddr *)&address, sizeof address);
  watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static void send_rest(connection *c) {
  size_t total = c->num_head_out + c->body->length;
  while (c->num_sent < total) {
    struct iovec parts[2];
    int count = 0;
    size_t skip = c->num_sent;
    if (skip < c->num_head_out) {
      parts[count++] = (struct iovec){c->head_out + skip, c->num_head_out - skip};
      skip = 0;
    } else skip -= c->num_head_out;
    parts[count++] = (struct iovec){c->body->text + skip, c->body->length - skip};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EAGAIN || errno == ENOTCONN) watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
      return;
    }
    c->num_sent += sent;
  }
  watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static void start_request(connection *c) {
  if (next_body == num_bodies) {
    fprintf(stderr, "all %zu bodies are used up\n", num_bodies);
    exit(BODIES_EXHAUSTED);
  }
  c->body = &bodies[next_body++];
  c->num_head_out = snprintf(c->head_out, sizeof c->head_out,
      "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nAccept: */*\r\n"
      "Content-Length: %zu\r\n\r\n", path, port, c->body->length);
  c->num_sent = c->num_head = c->num_digits = c->num_in_line = c->is_data_line = c->match = c->has_text = 0;
  c->status = c->is_chunked = 0;
  c->phase = READING_HEAD;
  c->part = CHUNK_SIZE;
  c->sent_at = c->event_at = now();
  send_rest(c);
}

static void finish_request(connection *c, double at) {
  c->phase = WAITING;
  if (!is_measuring) return;
  if (c->status == 200) {
    num_done++;
    add(&latency_ms, (at - c->sent_at) * 1e3);
  } else num_errors++;
}

static void on_event(connection *c, double at) {
  if (is_measuring) {
    num_events++;
    if (c->has_text) {
      add(&gap_ms, (at - c->event_at) * 1e3);
      num_tied += at == c->event_at;
    }
  }
  c->event_at = at;
}

// Lines beginning `data: {` are events. Until text has been seen, each line is searched for it.
static void scan(connection *c, const char *data, size_t length, double at) {
  for (size_t i = 0; i < length; i++) {
    char ch = data[i];
    if (ch == '\n') { c->num_in_line = c->match = 0; continue; }
    if (c->num_in_line < 7) {
      c->line[c->num_in_line++] = ch;
      if (c->num_in_line < 7 || memcmp(c->line, "data: {", 7)) continue;
      on_event(c, at);
    } else if (c->has_text) {
      const char *end = memchr(data + i, '\n', length - i);
      if (!end) return;
      i = end - data - 1;
    } else if (TEXT[c->match]) {
      c->match = ch == TEXT[c->match] ? c->match + 1 : ch == TEXT[0];
    } else {
      c->match = 0;
      if (ch == '"') continue;  // empty
      c->has_text = 1;
      if (is_measuring) add(&ttft_ms, (at - c->sent_at) * 1e3);
    }
  }
}

static void read_body(connection *c, const char *data, size_t length, double at) {
  if (is_measuring) num_bytes += length;
  if (c->status != 200 && !last_error[0]) {
    int n = snprintf(last_error, sizeof last_error, "%d ", c->status);
    for (size_t i = 0; i < length && n < (int)sizeof last_error - 1; i++)
      last_error[n++] = data[i] < 32 || data[i] == '"' || data[i] == '\\' ? '\'' : data[i];
  }
  if (!c->is_chunked) {
    scan(c, data, length, at);
    if ((c->num_left -= length) <= 0) finish_request(c, at);
    return;
  }
  while (length && c->phase == READING_BODY) {
    if (c->part == CHUNK_DATA) {
      size_t take = length < (size_t)c->num_left ? length : (size_t)c->num_left;
      scan(c, data, take, at);
      data += take, length -= take;
      if (!(c->num_left -= take)) c->part = CHUNK_END;
      continue;
    }
    char ch = *data++;
    length--;
    if (ch != '\n') {
      if (ch != '\r' && c->num_digits < 30) c->digits[c->num_digits++] = ch;
    } else if (c->part == CHUNK_END) {
      c->part = CHUNK_SIZE, c->num_digits = 0;
    } else if (c->part == CHUNK_SIZE) {
      c->digits[c->num_digits] = 0, c->num_digits = 0;
      c->num_left = strtol(c->digits, NULL, 16);
      c->part = c->num_left ? CHUNK_DATA : TRAILER;
    } else if (!c->num_digits) finish_request(c, at);
    else c->num_digits = 0;
  }
}

static void read_answer(connection *c, const char *data, size_t length, double at) {
  while (length && c->phase == READING_HEAD) {
    if (c->num_head == MAX_HEAD - 1) { fprintf(stderr, "an answer's head is too long\n"); exit(2); }
    c->head[c->num_head++] = *data++, length--;
    if (c->num_head < 4 || memcmp(c->head + c->num_head - 4, "\r\n\r\n", 4)) continue;
    c->head[c->num_head] = 0;
    c->status = atoi(c->head + 9);
    c->is_chunked = strcasestr(c->head, "transfer-encoding: chunked") != NULL;
    const char *field = strcasestr(c->head, "content-length:");
    c->num_left = field ? atol(field + 15) : 0;
    c->phase = READING_BODY;
    if (!c->is_chunked && !c->num_left) finish_request(c, at);
  }
  if (length && c->phase == READING_BODY) read_body(c, data, length, at);
}

static void receive(connection *c) {
  static char buffer[1 << 18];
  ssize_t length = recv(c->fd, buffer, sizeof buffer, 0);
  double at = now();
  if (length < 0 && errno == EAGAIN) return;
  if (is_quick_ack) setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
  if (length > 0) {
    read_answer(c, buffer, length, at);
    if (c->phase == WAITING) start_request(c);
    return;
  }
  close(c->fd);
  if (is_measuring && c->phase != WAITING) num_errors++;
  if (++num_reconnects > 1000) { fprintf(stderr, "the server keeps closing connections\n"); exit(2); }
  dial(c);
  start_request(c);
}

int main(int argc, char **argv) {
  int num_connections = 1, num_started = 0, option;
  double warm_s = 1, measure_s = 3, stagger_s = 0, cpu_before[MAX_PIDS] = {0}, own_before = 0, began = 0, ended;
  const char *file = NULL;
  while ((option = getopt(argc, argv, "P:b:u:c:w:d:s:p:q")) > 0) switch (option) {
    case 'P': port = atoi(optarg); break;
    case 'b': file = optarg; break;
    case 'u': path = optarg; break;
    case 'c': num_connections = atoi(optarg); break;
    case 'w': warm_s = atof(optarg); break;
    case 'd': measure_s = atof(optarg); break;
    case 's': stagger_s = atof(optarg); break;
    case 'q': is_quick_ack = 1; break;
    case 'p':
      for (char *pid = strtok(optarg, ","); pid && num_pids < MAX_PIDS; pid = strtok(NULL, ",")) pids[num_pids++] = atoi(pid);
      break;
    default: return 2;
  }
  if (!file || !port) { fprintf(stderr, "-P and -b are needed\n"); return 2; }
  load_bodies(file);
  poller = epoll_create1(0);
  connection *connections = calloc(num_connections, sizeof *connections);
  double opened = now();
  for (;;) {
    double t = now();
    while (num_started < num_connections && t - opened >= stagger_s * num_started / num_connections) {
      dial(&connections[num_started]);
      start_request(&connections[num_started++]);
    }
    if (!is_measuring && t - opened >= warm_s) {
      for (int i = 0; i < num_pids; i++) cpu_before[i] = cpu_s(pids[i]);
      own_before = own_cpu_s();
      began = now();
      is_measuring = 1;
    }
    if (is_measuring && t - began >= measure_s) break;
    struct epoll_event ready[MAX_EVENTS];
    int count = epoll_wait(poller, ready, MAX_EVENTS, num_started < num_connections ? 1 : 20);
    for (int i = 0; i < count; i++) {
      connection *c = ready[i].data.ptr;
      if (ready[i].events & EPOLLOUT) send_rest(c);
      if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
    }
  }
  ended = now();
  printf("{\"cpu_s\":[");
  for (int i = 0; i < num_pids; i++) printf("%s%.6f", i ? "," : "", cpu_s(pids[i]) - cpu_before[i]);
  printf("],\"client_cpu_s\":%.4f,\"seconds\":%.4f,", own_cpu_s() - own_before, ended - began);
  print_quantiles("latency_ms", &latency_ms);
  print_quantiles("ttft_ms", &ttft_ms);
  print_quantiles("gap_ms", &gap_ms);
  printf("\"tied_share\":%.4f,", gap_ms.count ? (double)num_tied / gap_ms.count : 0);
  printf("\"num_done\":%ld,\"num_errors\":%ld,\"num_events\":%ld,\"num_reconnects\":%ld,\"num_bytes\":%ld,"
         "\"num_bodies\":%zu,\"last_error\":\"%s\"}\n",
         num_done, num_errors, num_events, num_reconnects, num_bytes, next_body, last_error);
  return 0;
}
