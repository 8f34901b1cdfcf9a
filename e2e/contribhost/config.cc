#include "config.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <fstream>
#include <set>
#include <sstream>

#include "golang.h"

namespace {
std::string unescape(const std::string& word) {
  std::string s;
  for (size_t i = 0; i < word.size(); i++) {
    if (word[i] == '%' && i + 2 < word.size()) {
      s += static_cast<char>(strtol(word.substr(i + 1, 2).c_str(), nullptr, 16));
      i += 2;
    } else {
      s += word[i];
    }
  }
  return s;
}

// source/extensions/filters/network/local_ratelimit/local_ratelimit.cc: Filter::onNewConnection. It
// closes within onNewConnection, so that filters behind it hear of an end without a beginning.
class LocalRateLimit : public NetworkFilter {
public:
  explicit LocalRateLimit(std::shared_ptr<std::atomic<long>> tokens) : tokens_(std::move(tokens)) {}
  void initialize(Connection& connection) override { connection_ = &connection; }
  FilterStatus onNewConnection() override {
    if (tokens_->fetch_sub(1) > 0) {
      return FilterStatus::Continue;
    }
    connection_->close(CloseType::NoFlush);
    return FilterStatus::StopIteration;
  }
  FilterStatus onData(Buffer&, bool) override { return FilterStatus::Continue; }

private:
  const std::shared_ptr<std::atomic<long>> tokens_;
  Connection* connection_ = nullptr;
};
} // namespace

std::string escape(const std::string& word) {
  std::string s;
  for (const unsigned char c : word) {
    char hex[4];
    snprintf(hex, sizeof hex, "%%%02X", c);
    s += isalnum(c) || (c != 0 && strchr("-._~:/[]@", c) != nullptr) ? std::string(1, static_cast<char>(c)) : hex;
  }
  return s;
}

std::string readConfig(const std::string& path, Config* config) {
  std::ifstream file(path);
  if (!file) {
    return "cannot read " + path;
  }
  std::set<std::string> names;
  std::string line;
  for (int number = 1; std::getline(file, line); number++) {
    const auto wrong = [&](const std::string& what) { return path + ":" + std::to_string(number) + ": " + what; };
    std::vector<std::string> words;
    std::istringstream in(line);
    for (std::string word; in >> word;) {
      words.push_back(unescape(word));
    }
    if (words.empty()) {
      continue;
    }
    if (words[0] == "plaintext" && words.size() == 2) {
      config->plain_text.exists = true;
      config->plain_text.connect_timeout = std::chrono::milliseconds(atol(words[1].c_str()));
      continue;
    }
    if (words[0] == "listener" && words.size() == 4) {
      ListenerSpec l;
      l.name = words[1];
      l.address = words[2];
      l.buffer_limit = strtoul(words[3].c_str(), nullptr, 10);
      l.text = line;
      if (!names.insert(l.name).second) {
        return wrong("a second listener " + l.name);
      }
      config->listeners.push_back(std::move(l));
      continue;
    }
    if (config->listeners.empty()) {
      return wrong("no listener");
    }
    ListenerSpec& l = config->listeners.back();
    l.text += "\n" + line;
    if (words[0] == "local_ratelimit" && words.size() == 2) {
      const long max = atol(words[1].c_str());
      l.filters.push_back({[max] {
        auto tokens = std::make_shared<std::atomic<long>>(max);
        return [tokens] { return std::make_shared<LocalRateLimit>(tokens); };
      }});
    } else if (words[0] == "golang" && words.size() == 5) {
      auto c = std::make_shared<FilterConfig>(FilterConfig{words[1], words[2], words[3], words[4]});
      l.filters.push_back({[c] { return golangFactory(c); }});
    } else {
      return wrong("unknown: " + words[0]);
    }
  }
  return "";
}
