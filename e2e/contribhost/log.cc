#include "log.h"

#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "abi.h"

namespace {
std::atomic<int> level_{static_cast<int>(Level::info)};
const char* const names[] = {"trace", "debug", "info", "warning", "error", "critical", "off"};
} // namespace

void setLogLevel(Level level) { level_ = static_cast<int>(level); }
Level logLevel() { return static_cast<Level>(level_.load()); }

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
  if (static_cast<int>(level) < level_) {
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
  if (level >= static_cast<uint32_t>(Level::off) || static_cast<int>(level) < level_) {
    return;
  }
  line(static_cast<Level>(level), "golang",
       std::string(static_cast<const char*>(message_data), static_cast<size_t>(message_len)));
}

// contrib/golang/common/log/cgo.cc: envoyGoFilterLogLevel
uint32_t envoyGoFilterLogLevel() { return static_cast<uint32_t>(level_.load()); }
