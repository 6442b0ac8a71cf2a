package apiserver

import "time"

const (
	// maxRequestBytes bounds one request. The largest is a CreateVolume with
	// 64 labels of 63 + 255 bytes and 64 options of 256 bytes: 37 KiB.
	maxRequestBytes = 256 << 10
	// maxHeaderBytes bounds the header of a request: a path, a dozen fields.
	maxHeaderBytes = 32 << 10
	// maxStreams bounds the calls of one HTTP/2 connection that run at once.
	maxStreams = 256
	// maxConns bounds the connections to the socket: the command line, Docker,
	// a watcher or two; each costs two goroutines and some 20 KiB.
	maxConns = 512
	// readHeaderTimeout is for a peer that connects and says nothing.
	readHeaderTimeout = 10 * time.Second
	// idleTimeout ends connections that are kept without a call.
	idleTimeout = 5 * time.Minute
	// drainGrace is for connections without calls to send what they have and
	// go: HTTP/2 takes 1 s for its goodbye, the rest is for a busy machine.
	drainGrace = 3 * time.Second
	// abandonAfter is how long Close waits for calls whose contexts it ended,
	// and for HTTP/2 connections to say goodbye (1 s in net/http).
	abandonAfter = 5 * time.Second
	// maxSocketPathLen is sun_path of unix(7) less the final zero.
	maxSocketPathLen = 107
	// probeTimeout is how long a socket found in place may take to answer.
	probeTimeout = 2 * time.Second
)
