#include "log.h"

#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <sstream>
#include <string>

#include "abi.h"

namespace {
// source/common/common/logger.h: Id, as far as there are lines of them here
struct Logger {
  const char* name;
  std::atomic<int> level{static_cast<int>(Level::info)};
};
Logger loggers[] = {{"golang"}, {"config"}, {"connection"}, {"main"}, {"misc"}};
Logger& golang = loggers[0];
const char* const names[] = {"trace", "debug", "info", "warning", "error", "critical", "off"};

// source/common/common/logger.cc: Registry::logger
Logger* loggerOf(const std::string& name) {
  for (Logger& l : loggers) {
    if (name == l.name) {
      return &l;
    }
  }
  return nullptr;
}

bool logged(Level level, const Logger& logger) { return static_cast<int>(level) >= logger.level; }
} // namespace

// source/common/common/logger.cc: Registry::setLogLevel
void setLogLevel(Level level) {
  for (Logger& l : loggers) {
    l.level = static_cast<int>(level);
  }
}

// source/server/options_impl.cc: OptionsImpl::parseComponentLogLevels. Of what has no lines here
// the Envoy beside this program makes them.
bool setComponentLogLevels(const std::string& levels) {
  std::istringstream in(levels);
  for (std::string one; std::getline(in, one, ',');) {
    const size_t colon = one.find(':');
    Level level;
    if (colon == std::string::npos || !parseLevel(one.c_str() + colon + 1, &level)) {
      return false;
    }
    if (Logger* l = loggerOf(one.substr(0, colon)); l != nullptr) {
      l->level = static_cast<int>(level);
    }
  }
  return true;
}

bool parseLevel(const char* name, Level* level) {
  for (int i = 0; i < 7; i++) {
    if (strcmp(name, names[i]) == 0 || (i == 3 && strcmp(name, "warn") == 0)) {
      *level = static_cast<Level>(i);
      return true;
    }
  }
  return false;
}

namespace {
void line(Level level, const char* logger, const std::string& text) {
  timeval now;
  gettimeofday(&now, nullptr);
  tm parts;
  localtime_r(&now.tv_sec, &parts);
  char when[32];
  strftime(when, sizeof when, "%F %T", &parts);
  char head[128];
  snprintf(head, sizeof head, "[%s.%03ld][%ld][%s][%s] ", when, now.tv_usec / 1000,
           syscall(SYS_gettid), names[static_cast<int>(level)], logger);
  // One write a line: workers log at once.
  const std::string all = head + text + "\n";
  ssize_t ignored = write(STDERR_FILENO, all.data(), all.size());
  static_cast<void>(ignored);
}
} // namespace

void logf(Level level, const char* logger, const char* format, ...) {
  if (!logged(level, *loggerOf(logger))) {
    return;
  }
  char text[2048];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  line(level, logger, text);
}

// contrib/golang/common/log/cgo.cc: FilterLogger::log, envoyGoFilterLog. The bytes are the
// library's, and not terminated.
void envoyGoFilterLog(uint32_t level, void* message_data, int message_len) {
  if (level >= static_cast<uint32_t>(Level::off) || !logged(static_cast<Level>(level), golang)) {
    return;
  }
  line(static_cast<Level>(level), "golang",
       std::string(static_cast<const char*>(message_data), static_cast<size_t>(message_len)));
}

// contrib/golang/common/log/cgo.cc: envoyGoFilterLogLevel
uint32_t envoyGoFilterLogLevel() { return static_cast<uint32_t>(golang.level.load()); }
