// Package nbdclient is a user-space NBD client.
//
// Dial negotiates and returns a Session. Session.Queue makes a block.Queue of
// it, over the aio.Engine of its owner: a mirror's connection to a replica, or
// the client of a benchmark. OpenDevice is the synchronous form, for tools.
//
// A batch of requests is sent by one writev, payloads from where they are;
// replies are parsed many per read. A READ of bulkSize and more is received
// straight into its buffer.
//
// # Invariants
//
//  1. The server is not trusted: lengths are compared with limits and with what
//     was asked for before anything is written; a cookie that is not in flight,
//     a chunk outside its request, or a reply that may not come ends the
//     connection.
//  2. A READ succeeds only when its reply covered each byte's worth of it:
//     pieces inside the range whose lengths add up.
//  3. When the connection is lost, each request in flight ends with an error.
//     One that changes something and of which any byte was handed to the socket
//     is marked errdefs.ErrIndeterminate: it may have happened.
//  4. A buffer of a request is not touched after the request was reaped.
//  5. Nothing is sent again: what to do about a lost connection is the owner's
//     decision.
//
// # Goroutines
//
// None. Dial's negotiation runs in the caller; a Client belongs to the owner of
// its engine; Device uses block.Sync.
package nbdclient
