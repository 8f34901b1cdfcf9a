// A process that loads a library as envoy.filters.network.golang and serves real connections with
// it, so that what no contrib build of Envoy can be had for is tested all the same. What it does it
// does sentence by sentence as Envoy's C++: each place names the file and function that it follows.
//
//   contribhost CONFIG [--concurrency N] [--drain-time-s S] [-l LEVEL] [--component-log-level LEVELS]
//               [--parent PATH]
//
// With a parent it says "waiting" and does so at PATH for the sockets of the process whose place it
// takes, as Envoy does in a hot restart.
//
// It logs on standard error, and answers lines on standard input with one line each:
//
//   listeners          NAME ADDRESS NAME ADDRESS ...
//   update CONFIG      ok, or error and why
//   log LEVEL          ok
//   stats              NAME VALUE NAME VALUE ...
//   counts             what there is at this moment
//   pass PATH          ok, or error and why: the sockets are with who waits there
//   drain              ok: no connection is taken any more
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "counts.h"
#include "listener.h"
#include "log.h"

namespace {
int signal_pipe[2];

// libevent's evsig_handler
void onSignal(int) {
  ssize_t ignored = write(signal_pipe[1], "", 1);
  static_cast<void>(ignored);
}

std::string answer(ListenerManager& manager, const std::string& line) {
  const size_t blank = line.find(' ');
  const std::string command = line.substr(0, blank);
  const std::string argument = blank == std::string::npos ? "" : line.substr(blank + 1);
  if (command == "listeners") {
    std::string all;
    for (const auto& [name, address] : manager.listeners()) {
      all += (all.empty() ? "" : " ") + escape(name) + " " + address;
    }
    return all;
  }
  if (command == "update") {
    Config config;
    std::string wrong = readConfig(argument, &config);
    if (wrong.empty()) {
      wrong = manager.update(config);
    }
    if (!wrong.empty()) {
      logf(Level::warning, "config", "%s", wrong.c_str());
      return "error " + wrong;
    }
    return "ok";
  }
  if (command == "stats") {
    std::string all;
    for (const auto& [name, value] : manager.stats()) {
      all += (all.empty() ? "" : " ") + name + " " + std::to_string(value);
    }
    return all;
  }
  if (command == "log") {
    Level level;
    if (!parseLevel(argument.c_str(), &level)) {
      return "error no level " + argument;
    }
    setLogLevel(level);
    return "ok";
  }
  if (command == "pass") {
    const std::string wrong = manager.passSockets(argument);
    return wrong.empty() ? "ok" : "error " + wrong;
  }
  if (command == "drain") {
    manager.stopListeners();
    return "ok";
  }
  if (command == "counts") {
    char text[256];
    snprintf(text, sizeof text, "connections=%ld filters=%ld wrappers=%ld upstreams=%ld upstream_wrappers=%ld configs=%ld",
             counts.connections.load(), counts.filters.load(), counts.wrappers.load(),
             counts.upstreams.load(), counts.upstream_wrappers.load(), counts.configs.load());
    return text;
  }
  return "error unknown command " + command;
}
} // namespace

int main(int argc, char** argv) {
  size_t concurrency = 1;
  long drain_time_ms = 600000; // source/server/options_impl.cc: --drain-time-s is 600
  std::string path, component_log_levels, parent;
  for (int i = 1; i < argc; i++) {
    const bool more = i + 1 < argc;
    Level level;
    if (more && strcmp(argv[i], "--concurrency") == 0) {
      concurrency = strtoul(argv[++i], nullptr, 10);
    } else if (more && strcmp(argv[i], "--drain-time-s") == 0) {
      drain_time_ms = static_cast<long>(1000 * atof(argv[++i]));
    } else if (more && strcmp(argv[i], "-l") == 0 && parseLevel(argv[i + 1], &level)) {
      setLogLevel(level);
      i++;
    } else if (more && strcmp(argv[i], "--component-log-level") == 0) {
      component_log_levels = argv[++i];
    } else if (more && strcmp(argv[i], "--parent") == 0) {
      parent = argv[++i];
    } else if (path.empty() && argv[i][0] != '-') {
      path = argv[i];
    } else {
      fprintf(stderr, "contribhost: unknown argument %s\n", argv[i]);
      return 1;
    }
  }
  // source/exe/stripped_main_base.cc: configureComponentLogLevels, whichever came first
  if (!setComponentLogLevels(component_log_levels)) {
    fprintf(stderr, "contribhost: component log level not correctly specified: %s\n", component_log_levels.c_str());
    return 1;
  }
  // source/common/event/libevent.cc: Global::initialize
  signal(SIGPIPE, SIG_IGN);
  // source/server/server.cc: RunHelper. SIGTERM and SIGINT end the main loop.
  if (pipe(signal_pipe) != 0) {
    return 1;
  }
  struct sigaction action = {};
  action.sa_handler = onSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);

  Dispatcher dispatcher;
  ListenerManager manager(dispatcher, concurrency, std::chrono::milliseconds(drain_time_ms));
  Config config;
  std::string wrong = readConfig(path, &config);
  plain_text = config.plain_text;
  if (wrong.empty() && !parent.empty()) {
    wrong = manager.inherit(parent);
  }
  // source/server/server.cc: InstanceBase::initialize. Listeners of the bootstrap, and with them the
  // library, are loaded before there is any worker.
  if (wrong.empty()) {
    wrong = manager.update(config);
  }
  if (!wrong.empty()) {
    logf(Level::critical, "main", "error initializing configuration: %s", wrong.c_str());
    return 1;
  }
  manager.startWorkers();

  FileEvent end(dispatcher, signal_pipe[0], false, Ready::read, [&](uint32_t) {
    char c;
    ssize_t ignored = read(signal_pipe[0], &c, 1);
    static_cast<void>(ignored);
    logf(Level::warning, "main", "caught ENVOY_SIGTERM");
    dispatcher.exit();
  });
  std::string input;
  std::unique_ptr<FileEvent> commands;
  commands.reset(new FileEvent(dispatcher, STDIN_FILENO, false, Ready::read, [&](uint32_t) {
    char bytes[4096];
    const ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
    if (n <= 0) {
      commands->setEnabled(0);
      commands.reset();
      return;
    }
    input.append(bytes, static_cast<size_t>(n));
    for (size_t end; (end = input.find('\n')) != std::string::npos; input.erase(0, end + 1)) {
      printf("%s\n", answer(manager, input.substr(0, end)).c_str());
      fflush(stdout);
    }
  }));
  printf("ready\n");
  fflush(stdout);
  dispatcher.run();
  // source/server/server.cc: InstanceBase::terminate. The library gets no call for it.
  manager.stopWorkers();
  logf(Level::info, "main", "exiting");
  return 0;
}
