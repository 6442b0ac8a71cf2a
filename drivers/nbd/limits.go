package nbd

// Limits of the protocol as Moraine speaks it.
const (
	// MaxString bounds export names, descriptions and context names (specification: 4096).
	MaxString = 4096
	// MaxPayload bounds the payload of one request or of one reply: 32 MiB, what
	// Linux, qemu and libnbd take as the largest that every peer accepts.
	MaxPayload = 32 << 20
	// MaxSkip bounds the payload of a WRITE above MaxPayload that is read and
	// thrown away to answer EINVAL; beyond it the connection is closed.
	MaxSkip = 64 << 20

	// MaxOption bounds an option's payload that is looked at. SET_META_CONTEXT
	// with a name (4 KiB) and 7 longest queries fits; real ones have < 200 bytes.
	MaxOption = 32 << 10
	// MaxOptionSkip bounds an option's payload that is skipped to answer
	// ERR_TOO_BIG or ERR_UNSUP; beyond it the connection is closed.
	MaxOptionSkip = 1 << 20
	// MaxOptions bounds the options of one handshake: libnbd sends about 6,
	// a client that looks at each of 100 exports about 300.
	MaxOptions = 1024
	// MaxQueries bounds the queries of one SET_META_CONTEXT (MaxOption / 8 would be 4096).
	MaxQueries = 64
	// MaxContexts bounds the contexts selected on one connection.
	MaxContexts = 8

	// MaxOptionReply bounds the payload of an option's reply that a client
	// accepts: a longest name and a longest description, with room to spare.
	MaxOptionReply = 16 << 10
	// MaxOptionReplies bounds the replies to one option (LIST of 64 Ki exports).
	MaxOptionReplies = 64 << 10

	// MaxExtents bounds the extents of one BLOCK_STATUS reply: 8192 × 8 B =
	// 64 KiB (128 KiB extended); a client asks again from where the reply ends.
	MaxExtents = 8192
	// MaxStatusPayload bounds a BLOCK_STATUS chunk that a client accepts:
	// 1 Mi extents of 8 bytes, the specification's own limit (2^20 descriptors).
	MaxStatusPayload = 8<<20 + 8
	// MaxErrorPayload bounds an error chunk: 6 bytes, a longest string, an offset.
	MaxErrorPayload = 6 + MaxString + 8
)
