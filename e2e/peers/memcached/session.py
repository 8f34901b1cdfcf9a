"""Goes through what a library can do with memcached, and fails if anything is not
as memcached does it. usage: session.py LIBRARY HOST PORT PREFIX"""
import sys


def same(got, want):
    if got != want:
        raise AssertionError(f"got {got!r}, want {want!r}")


def pymemcache(host, port, prefix):
    from pymemcache.client.base import Client
    from pymemcache.exceptions import MemcacheClientError, MemcacheIllegalInputError, MemcacheServerError

    def key(name):
        return prefix + name

    # Its changes are noreply, and wait for an acknowledgement unless told otherwise.
    c = Client((host, port), timeout=10, connect_timeout=10, no_delay=True)
    for i in range(300):
        c.set(key("order"), str(i))
        same(c.get(key("order")), str(i).encode())
    same(c.set(key("a"), b"1", noreply=False), True)
    same(c.add(key("a"), b"2", noreply=False), False)
    same(c.add(key("b"), b"2", noreply=False), True)
    same(c.replace(key("none"), b"2", noreply=False), False)
    same(c.append(key("b"), b"3", noreply=False), True)
    same(c.prepend(key("b"), b"1", noreply=False), True)
    same(c.get(key("b")), b"123")
    same(c.get(key("none")), None)
    same(c.set_many({key("m%d" % i): "v%d" % i for i in range(100)}, noreply=False), [])
    same(c.get_many([key("m%d" % i) for i in range(0, 200, 2)]), {key("m%d" % i): b"v%d" % i for i in range(0, 100, 2)})
    value, cas = c.gets(key("a"))
    same(value, b"1")
    same(c.cas(key("a"), b"5", cas), True)
    same(c.cas(key("a"), b"6", cas), False)
    same(c.cas(key("none"), b"6", cas), None)
    same(c.gets_many([key("a"), key("none")])[key("a")][0], b"5")
    same(c.incr(key("a"), 10), 15)
    same(c.decr(key("a"), 20), 0)
    same(c.incr(key("none"), 1), None)
    same(c.touch(key("a"), 100, noreply=False), True)
    same(c.touch(key("none"), 100, noreply=False), False)
    same(c.get(key("a")), b"0 ")
    same(c.delete(key("a"), noreply=False), True)
    same(c.delete(key("a"), noreply=False), False)
    same(c.delete_many([key("m1"), key("m2")]), True)
    same(c.get(key("m1")), None)
    large = b"x" * 1000000
    same(c.set(key("large"), large, noreply=False), True)
    same(c.get(key("large")), large)
    for refused, error in [
        (lambda: c.set(key("large"), b"x" * 2000000, noreply=False), MemcacheServerError),
        (lambda: c.set(key("large"), b"x" * 20000000, noreply=False), MemcacheServerError),
        (lambda: c.incr(key("b"), -1), MemcacheClientError),
        (lambda: c.get("k" * 251), MemcacheIllegalInputError),
    ]:
        try:
            refused()
        except error:
            continue
        raise AssertionError("it was not refused")
    same(c.set(key("b"), b"2", noreply=False), True)
    same(c.raw_command("mg " + key("b") + " v", b"\r\n2\r\n"), b"VA 1")
    same(c.raw_command("gat 100 " + key("b"), b"END\r\n"), b"VALUE " + key("b").encode() + b" 0 1\r\n2\r\n")
    c.version()
    same(b"pid" in c.stats(), True)
    same(c.flush_all(noreply=False), True)
    same(c.get(key("b")), None)
    c.quit()
    same(c.get(key("b")), None)  # over another connection
    c.close()


def python_memcached(host, port, prefix):
    import memcache

    def key(name):
        return prefix + name

    c = memcache.Client(["%s:%d" % (host, port)], socket_timeout=10, cache_cas=True)
    same(c.set(key("a"), "text"), True)
    same(c.get(key("a")), "text")
    same(c.set(key("n"), 41), True)
    same(c.incr(key("n")), 42)
    same(c.decr(key("n"), 2), 40)
    same(c.get(key("n")), 40)
    same(c.set(key("o"), {"some": ["object"]}), True)
    same(c.get(key("o")), {"some": ["object"]})
    same(c.set_multi({"m%d" % i: i for i in range(100)}, key_prefix=key("")), [])
    same(c.get_multi(["m%d" % i for i in range(0, 200, 2)], key_prefix=key("")), {"m%d" % i: i for i in range(0, 100, 2)})
    same(c.add(key("a"), "no"), False)
    same(c.append(key("a"), "!"), True)
    same(c.prepend(key("a"), "¡"), True)
    same(c.gets(key("n")), 40)
    same(c.cas(key("n"), 7), True)
    same(c.cas(key("n"), 8), False)
    same(c.touch(key("n"), 100), True)
    same(c.delete_multi(["m%d" % i for i in range(10)], key_prefix=key("")), True)
    same(c.get_multi(["m1", "m11"], key_prefix=key("")), {"m11": 11})
    same(c.replace(key("none"), 1), False)
    same(c.get(key("none")), None)
    same(c.get_stats()[0][1]["cmd_touch"] != "", True)
    c.flush_all()
    same(c.get(key("a")), None)
    c.disconnect_all()


{"pymemcache": pymemcache, "python-memcached": python_memcached}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), sys.argv[4])
