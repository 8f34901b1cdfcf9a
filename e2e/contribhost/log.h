// Logging in Envoy's form, on standard error.
#pragma once

#include <stdarg.h>

#include <string>

// The levels are spdlog's, which Envoy's are.
enum class Level { trace, debug, info, warning, error, critical, off };

void setLogLevel(Level level);
// COMPONENT:LEVEL, comma-separated; false: malformed
bool setComponentLogLevels(const std::string& levels);
// The level's index by its name as envoy -l takes it; false if there is none.
bool parseLevel(const char* name, Level* level);

void logf(Level level, const char* logger, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
