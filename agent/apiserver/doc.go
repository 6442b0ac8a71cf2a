// Package apiserver offers an api.Service over gRPC, gRPC-Web and HTTP/JSON:
// one handler, one unix socket, HTTP/1.1 and unencrypted HTTP/2. It decides
// nothing: it checks who calls, bounds what is sent, passes the call on, and
// translates the error (agent/api/apierr).
//
// Invariants:
//
//  1. Only root and the user that the agent runs as are served: the socket has
//     mode 0600 before it gets its name, and the kernel is asked who the peer
//     is (SO_PEERCRED), since a descriptor can be handed on.
//  2. A panic of a handler ends that call with an internal error and a logged
//     stack; the agent and every attached volume go on.
//  3. A socket is removed only by the holder of its lock (PATH.lock), and only
//     if nobody answers on it; at the end only the server's own. The lock file
//     stays.
//  4. Drain ends streams at once (their clients follow again later) and lets
//     unary calls finish; Close abandons them. Neither touches a volume.
//
// Goroutines: one accept loop and net/http's per connection and call (owner
// Server; Close and Drain end them and wait, 5 s at most for a call that does
// not heed its context); one per stream that watches for Drain (ends with it).
package apiserver
