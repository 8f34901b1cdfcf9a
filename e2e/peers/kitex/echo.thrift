// What the Kitex peers of the end-to-end tests serve and call. gen.sh makes the
// code.

namespace go api

exception Refusal {
  1: i32 code
  2: string reason
}

service Echo {
  // The name of the instance.
  string who()
  // "<instance>: <text>"
  string echo(1: string text)
  // Answers nothing.
  void touch(1: string key)
  // The declared exception.
  string fail(1: i32 code) throws (1: Refusal refusal)
  // A BizStatusError.
  string business(1: i32 code)
  // The handler fails in an undeclared way.
  string crash()
  // The name of the instance after that many milliseconds.
  string slow(1: i32 ms)
  binary blob(1: binary bytes)
  // The metainfo of the request, by its names on the wire.
  map<string, string> headers()
  oneway void tell(1: string text)
  // How often tell and touch were called.
  i32 told()
}

// Nobody serves this.
service Unserved {
  string noSuch(1: string text)
}
