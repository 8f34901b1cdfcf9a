#include "address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>

bool parseAddress(const std::string& text, sockaddr_storage* address, socklen_t* length) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size()) {
    return false;
  }
  char* end;
  const unsigned long port = strtoul(text.c_str() + colon + 1, &end, 10);
  if (*end != 0 || port > 65535) {
    return false;
  }
  *address = {};
  if (text[0] == '[' && text[colon - 1] == ']') {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(address);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    *length = sizeof *v6;
    return inet_pton(AF_INET6, text.substr(1, colon - 2).c_str(), &v6->sin6_addr) == 1;
  }
  auto* v4 = reinterpret_cast<sockaddr_in*>(address);
  v4->sin_family = AF_INET;
  v4->sin_port = htons(static_cast<uint16_t>(port));
  *length = sizeof *v4;
  return inet_pton(AF_INET, text.substr(0, colon).c_str(), &v4->sin_addr) == 1;
}

std::string addressString(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN];
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6.sin6_port));
  }
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
  inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
  return std::string(text) + ":" + std::to_string(ntohs(v4.sin_port));
}
