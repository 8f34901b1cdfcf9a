// An Apache Thrift client that does what lines of JSON on its standard input say,
// and answers with lines of JSON: the same as those of the client in Go. With
// -shared it has one connection, on which any number of calls are in flight, told
// by their sequence ids; otherwise each call in flight has one to itself.

#include <rapidjson/document.h>
#include <rapidjson/stringbuffer.h>
#include <rapidjson/writer.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <thrift/protocol/TBase64Utils.h>
#include <thrift/protocol/TBinaryProtocol.h>
#include <thrift/protocol/TCompactProtocol.h>
#include <thrift/protocol/THeaderProtocol.h>
#include <thrift/protocol/TMultiplexedProtocol.h>
#include <thrift/transport/TBufferTransports.h>
#include <thrift/transport/TSocket.h>

// One unit, as the library's headers are most of the work.
#include "Echo.cpp"
#include "Unserved.cpp"
#include "echo_types.cpp"

namespace {

using namespace apache::thrift;
using namespace apache::thrift::protocol;
using namespace apache::thrift::transport;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string host, transport = "framed", protocol = "strict";
  int port = 0, timeout = 3000; // ms
  bool shared = false;
};

struct Connection {
  std::shared_ptr<TSocket> socket;
  std::shared_ptr<TProtocol> protocol;
  std::shared_ptr<THeaderProtocol> header; // or none
  std::shared_ptr<async::TConcurrentClientSyncInfo> sync; // of the calls that share it

  explicit Connection(const Options& o) : socket(std::make_shared<TSocket>(o.host, o.port)) {
    setTimeout(o.timeout);
    if (o.shared) {
      sync = std::make_shared<async::TConcurrentClientSyncInfo>();
    }
    const bool compact = o.protocol == "compact";
    if (o.transport == "header") {
      protocol = header = std::make_shared<THeaderProtocol>(socket, compact ? T_COMPACT_PROTOCOL : T_BINARY_PROTOCOL);
    } else {
      std::shared_ptr<TTransport> transport;
      if (o.transport == "framed") {
        transport = std::make_shared<TFramedTransport>(socket);
      } else {
        transport = std::make_shared<TBufferedTransport>(socket);
      }
      if (compact) {
        protocol = std::make_shared<TCompactProtocol>(transport);
      } else {
        const bool strict = o.protocol == "strict";
        protocol = std::make_shared<TBinaryProtocol>(transport, 0, 0, strict, strict);
      }
    }
    socket->open();
  }

  void setTimeout(int ms) {
    socket->setConnTimeout(ms);
    socket->setRecvTimeout(ms);
    socket->setSendTimeout(ms);
  }

  // client gives a generated client of a service, "" for those that are not
  // multiplexed.
  template <class Interface, class Plain, class Concurrent>
  std::shared_ptr<Interface> client(const std::string& service) {
    auto p = protocol;
    if (!service.empty()) {
      p = std::make_shared<TMultiplexedProtocol>(protocol, service);
    }
    if (sync) {
      return std::make_shared<Concurrent>(p, sync);
    }
    return std::make_shared<Plain>(p);
  }
};

std::string base64(const std::string& s) {
  std::string out;
  for (size_t i = 0; i < s.size(); i += 3) {
    const auto n = static_cast<uint32_t>(std::min<size_t>(3, s.size() - i));
    uint8_t quad[4] = {'=', '=', '=', '='};
    base64_encode(reinterpret_cast<const uint8_t*>(s.data()) + i, n, quad);
    out.append(reinterpret_cast<char*>(quad), 4);
  }
  return out;
}

std::string unbase64(std::string s) {
  while (!s.empty() && s.back() == '=') {
    s.pop_back();
  }
  std::string out;
  for (size_t i = 0; i < s.size(); i += 4) {
    const auto n = static_cast<uint32_t>(std::min<size_t>(4, s.size() - i));
    uint8_t quad[4] = {};
    s.copy(reinterpret_cast<char*>(quad), n, i);
    base64_decode(quad, n);
    out.append(reinterpret_cast<char*>(quad), n - 1);
  }
  return out;
}

using JSON = rapidjson::Value;

std::string text(const JSON& v) { return {v.GetString(), v.GetStringLength()}; }

std::string text(const JSON& cmd, const char* key) { return cmd.HasMember(key) ? text(cmd[key]) : ""; }

int64_t number(const JSON& cmd, const char* key) { return cmd.HasMember(key) ? cmd[key].GetInt64() : 0; }

bool truth(const JSON& cmd, const char* key) { return cmd.HasMember(key) && cmd[key].GetBool(); }

using Strings = std::map<std::string, std::string>;

struct Answer {
  enum { None, Text, Number, Map } kind = None;
  std::string value; // of a number its text
  Strings map, attachments;
  std::string error, errorType;
  int64_t latency = 0; // us
};

// invoke makes a call with the generated client.
void invoke(Connection& c, const JSON& cmd, Answer& a) {
  const std::string service = text(cmd, "interface"), method = text(cmd, "method");
  auto echo = c.client<EchoIf, EchoClient, EchoConcurrentClient>(service);
  auto str = [&] { return text(cmd["args"][0]); };
  auto num = [&](unsigned i) { return cmd["args"][i].GetInt(); };
  auto count = [&](int32_t n) {
    a.kind = Answer::Number;
    a.value = std::to_string(n);
  };
  if (c.header && cmd.HasMember("attachments")) {
    for (const auto& m : cmd["attachments"].GetObject()) {
      c.header->setHeader(text(m.name), text(m.value));
    }
  }
  if (method == "touch") {
    return echo->touch(str());
  }
  if (method == "tell") {
    return echo->tell(str());
  }
  if (method == "add") {
    return count(echo->add(num(0), num(1)));
  }
  if (method == "told") {
    return count(echo->told());
  }
  if (method == "headers") {
    echo->headers(a.map);
    a.kind = Answer::Map;
    return;
  }
  if (method == "who") {
    echo->who(a.value);
  } else if (method == "echo") {
    echo->echo(a.value, str());
  } else if (method == "fail") {
    echo->fail(a.value, num(0));
  } else if (method == "crash") {
    echo->crash(a.value);
  } else if (method == "slow") {
    echo->slow(a.value, num(0));
  } else if (method == "blob") {
    std::string bytes;
    echo->blob(bytes, unbase64(str()));
    a.value = base64(bytes);
  } else if (method == "noSuch") {
    c.client<UnservedIf, UnservedClient, UnservedConcurrentClient>(service)->noSuch(a.value, str());
  } else {
    throw std::invalid_argument("no method " + method);
  }
  a.kind = Answer::Text;
}

using Writer = rapidjson::Writer<rapidjson::StringBuffer>;

void put(Writer& w, const std::string& s) { w.String(s.data(), static_cast<rapidjson::SizeType>(s.size())); }

void put(Writer& w, const Strings& map) {
  w.StartObject();
  for (const auto& e : map) {
    put(w, e.first);
    put(w, e.second);
  }
  w.EndObject();
}

void put(Writer& w, const std::map<std::string, int>& map) {
  w.StartObject();
  for (const auto& e : map) {
    put(w, e.first);
    w.Int(e.second);
  }
  w.EndObject();
}

class Client {
public:
  explicit Client(Options o) : o_(std::move(o)) {}

  // run carries one command out.
  void run(const std::string& line) {
    rapidjson::Document cmd;
    cmd.Parse(line.data(), line.size());
    const int64_t duration = number(cmd, "duration_ms");
    const int64_t count = duration ? number(cmd, "count") : std::max<int64_t>(number(cmd, "count"), 1);
    const auto deadline = Clock::now() + std::chrono::milliseconds(duration);
    const bool summary = truth(cmd, "summary");
    std::atomic<int64_t> begun{0};
    std::mutex mu;
    std::map<std::string, int> values, errors;
    int64_t calls = 0, slowest = 0;
    std::vector<std::thread> callers;
    for (int64_t i = std::max<int64_t>(number(cmd, "concurrency"), 1); i > 0; i--) {
      callers.emplace_back([&] {
        for (;;) {
          const int64_t n = ++begun;
          if ((count && n > count) || (duration && Clock::now() > deadline)) {
            return;
          }
          const Answer a = call(cmd);
          if (!summary) {
            print(cmd, a);
            continue;
          }
          std::lock_guard<std::mutex> lock(mu);
          calls++;
          ++(a.error.empty() ? values[a.value] : errors[a.error]);
          slowest = std::max(slowest, a.latency);
        }
      });
    }
    for (auto& t : callers) {
      t.join();
    }
    if (!summary) {
      return;
    }
    line_([&](Writer& w) {
      w.Key("id"), w.Int64(number(cmd, "id"));
      w.Key("calls"), w.Int64(calls);
      w.Key("values"), put(w, values);
      w.Key("errors"), put(w, errors);
      w.Key("latency_us"), w.StartObject(), w.Key("max"), w.Int64(slowest), w.EndObject();
    });
  }

private:
  const Options o_;
  std::mutex mu_, out_;
  std::vector<std::shared_ptr<Connection>> idle_; // or the one that is shared

  template <class Fill>
  void line_(Fill fill) {
    rapidjson::StringBuffer b;
    Writer w(b);
    w.StartObject();
    fill(w);
    w.EndObject();
    std::lock_guard<std::mutex> lock(out_);
    std::cout << b.GetString() << std::endl;
  }

  void print(const JSON& cmd, const Answer& a) {
    line_([&](Writer& w) {
      w.Key("id"), w.Int64(number(cmd, "id"));
      w.Key("value");
      switch (a.kind) {
      case Answer::None:
        w.Null();
        break;
      case Answer::Text:
        put(w, a.value);
        break;
      case Answer::Number:
        w.Int64(std::stoll(a.value));
        break;
      case Answer::Map:
        put(w, a.map);
      }
      w.Key("attachments"), put(w, a.attachments);
      if (!a.errorType.empty()) {
        w.Key("error"), put(w, a.error);
        w.Key("error_type"), put(w, a.errorType);
      }
      w.Key("latency_us"), w.Int64(a.latency);
    });
  }

  // connect gives the connection that was free last or is shared, or a new one.
  std::shared_ptr<Connection> connect(bool fresh) {
    std::lock_guard<std::mutex> lock(mu_);
    if (fresh || idle_.empty()) {
      auto c = std::make_shared<Connection>(o_);
      if (o_.shared) {
        idle_.push_back(c);
      }
      return c;
    }
    auto c = idle_.back();
    if (!o_.shared) {
      idle_.pop_back();
    }
    return c;
  }

  void release(const std::shared_ptr<Connection>& c, bool broken) {
    std::lock_guard<std::mutex> lock(mu_);
    if (!o_.shared && !broken) {
      idle_.push_back(c);
    } else if (o_.shared && broken && !idle_.empty() && idle_.back() == c) {
      idle_.pop_back();
    }
  }

  // call makes one call.
  Answer call(const JSON& cmd) {
    Answer a;
    auto begin = Clock::now();
    const bool close = truth(cmd, "close");
    std::shared_ptr<Connection> c;
    bool broken = close;
    auto failed = [&](const std::string& type, const std::string& error) {
      a.kind = Answer::None;
      a.error = error;
      a.errorType = type;
    };
    try {
      c = connect(close);
      if (!o_.shared) {
        const auto timeout = static_cast<int>(number(cmd, "timeout_ms"));
        c->setTimeout(timeout ? timeout : o_.timeout);
      }
      begin = Clock::now();
      invoke(*c, cmd, a);
    } catch (const Refusal& e) {
      failed("Refusal", e.reason + " (code " + std::to_string(e.code) + ")");
    } catch (const TApplicationException& e) {
      failed("TApplicationException " + std::to_string(e.getType()), e.what());
    } catch (const std::exception& e) {
      failed("transport", e.what());
      broken = true;
    }
    a.latency = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
    if (c) {
      if (c->header && !broken) {
        a.attachments = c->header->getHeaders();
      }
      release(c, broken);
    }
    return a;
  }
};

} // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i++) {
    const std::string flag = argv[i];
    if (flag == "-shared") {
      o.shared = true;
    } else if (++i == argc) {
      std::cerr << flag << " wants a value" << std::endl;
      return 2;
    } else if (flag == "-addr") {
      const std::string addr = argv[i];
      o.host = addr.substr(0, addr.rfind(':'));
      o.port = std::stoi(addr.substr(addr.rfind(':') + 1));
    } else if (flag == "-timeout") {
      o.timeout = std::stoi(argv[i]);
    } else if (flag == "-transport") {
      o.transport = argv[i];
    } else if (flag == "-protocol") {
      o.protocol = argv[i];
    }
  }
  Client client(o);
  for (std::string line; std::getline(std::cin, line);) {
    std::thread([&client, line] { client.run(line); }).detach();
  }
  std::_Exit(0); // whatever is under way
}
