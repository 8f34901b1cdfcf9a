// Addresses in the form in which Envoy writes them.
#pragma once

#include <sys/socket.h>

#include <string>

// source/common/network/utility.cc: parseInternetAddressAndPort. 1.2.3.4:5 or [::1]:5.
bool parseAddress(const std::string& text, sockaddr_storage* address, socklen_t* length);
// source/common/network/address_impl.cc: asString of Ipv4Instance and Ipv6Instance.
std::string addressString(const sockaddr_storage& address);
