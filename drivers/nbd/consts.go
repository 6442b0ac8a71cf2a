package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Magic numbers.
const (
	MagicNBD         uint64 = 0x4e42444d41474943 // NBDMAGIC
	MagicOption      uint64 = protocol.NEGOTIATION_MAGIC_OPTION
	MagicOptionReply uint64 = protocol.NEGOTIATION_MAGIC_REPLY
	MagicRequest     uint32 = protocol.TRANSMISSION_MAGIC_REQUEST // NBD_REQUEST_MAGIC
	MagicExtRequest  uint32 = 0x21e41c71                          // NBD_EXTENDED_REQUEST_MAGIC
	MagicSimpleReply uint32 = protocol.TRANSMISSION_MAGIC_REPLY   // NBD_SIMPLE_REPLY_MAGIC
	MagicChunk       uint32 = 0x668e33ef                          // NBD_STRUCTURED_REPLY_MAGIC
	MagicExtChunk    uint32 = 0x6e8a278c                          // NBD_EXTENDED_REPLY_MAGIC
	RequestSize             = 28
	ExtRequestSize          = 32
	SimpleReplySize         = 16
	ChunkSize               = 20
	ExtChunkSize            = 32
	optionHeaderSize        = 16
	optionReplySize         = 20
	exportNameZeroes        = 124
)

// Handshake flags of the server and of the client.
const (
	FlagFixedNewstyle  uint16 = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE // NBD_FLAG_FIXED_NEWSTYLE
	FlagNoZeroes       uint16 = 1 << 1                                             // NBD_FLAG_NO_ZEROES
	FlagCFixedNewstyle uint32 = 1 << 0                                             // NBD_FLAG_C_FIXED_NEWSTYLE
	FlagCNoZeroes      uint32 = 1 << 1                                             // NBD_FLAG_C_NO_ZEROES
)

// Transmission flags: what an export can do.
const (
	FlagHasFlags      uint16 = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS      // NBD_FLAG_HAS_FLAGS
	FlagReadOnly      uint16 = 1 << 1                                          // NBD_FLAG_READ_ONLY
	FlagSendFlush     uint16 = 1 << 2                                          // NBD_FLAG_SEND_FLUSH
	FlagSendFUA       uint16 = 1 << 3                                          // NBD_FLAG_SEND_FUA
	FlagRotational    uint16 = 1 << 4                                          // NBD_FLAG_ROTATIONAL
	FlagSendTrim      uint16 = 1 << 5                                          // NBD_FLAG_SEND_TRIM
	FlagSendZeroes    uint16 = 1 << 6                                          // NBD_FLAG_SEND_WRITE_ZEROES
	FlagSendDF        uint16 = 1 << 7                                          // NBD_FLAG_SEND_DF
	FlagCanMultiConn  uint16 = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN // NBD_FLAG_CAN_MULTI_CONN
	FlagSendResize    uint16 = 1 << 9                                          // NBD_FLAG_SEND_RESIZE
	FlagSendCache     uint16 = 1 << 10                                         // NBD_FLAG_SEND_CACHE
	FlagSendFastZero  uint16 = 1 << 11                                         // NBD_FLAG_SEND_FAST_ZERO
	FlagBlockStatLoad uint16 = 1 << 12                                         // NBD_FLAG_BLOCK_STAT_PAYLOAD
)

// Options.
const (
	OptExportName      uint32 = 1 // NBD_OPT_EXPORT_NAME
	OptAbort           uint32 = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList            uint32 = protocol.NEGOTIATION_ID_OPTION_LIST
	OptStartTLS        uint32 = 5 // NBD_OPT_STARTTLS
	OptInfo            uint32 = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo              uint32 = protocol.NEGOTIATION_ID_OPTION_GO
	OptStructuredReply uint32 = 8  // NBD_OPT_STRUCTURED_REPLY
	OptListMetaContext uint32 = 9  // NBD_OPT_LIST_META_CONTEXT
	OptSetMetaContext  uint32 = 10 // NBD_OPT_SET_META_CONTEXT
	OptExtendedHeaders uint32 = 11 // NBD_OPT_EXTENDED_HEADERS
)

// Replies to options. Bit 31 marks errors.
const (
	RepAck         uint32 = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer      uint32 = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo        uint32 = protocol.NEGOTIATION_TYPE_REPLY_INFO
	RepMetaContext uint32 = 4 // NBD_REP_META_CONTEXT

	repErr               uint32 = 1 << 31
	RepErrUnsup          uint32 = repErr | 1  // NBD_REP_ERR_UNSUP
	RepErrPolicy         uint32 = repErr | 2  // NBD_REP_ERR_POLICY
	RepErrInvalid        uint32 = repErr | 3  // NBD_REP_ERR_INVALID
	RepErrPlatform       uint32 = repErr | 4  // NBD_REP_ERR_PLATFORM
	RepErrTLSReqd        uint32 = repErr | 5  // NBD_REP_ERR_TLS_REQD
	RepErrUnknown        uint32 = repErr | 6  // NBD_REP_ERR_UNKNOWN
	RepErrShutdown       uint32 = repErr | 7  // NBD_REP_ERR_SHUTDOWN
	RepErrBlockSizeReqd  uint32 = repErr | 8  // NBD_REP_ERR_BLOCK_SIZE_REQD
	RepErrTooBig         uint32 = repErr | 9  // NBD_REP_ERR_TOO_BIG
	RepErrExtHeadersReqd uint32 = repErr | 10 // NBD_REP_ERR_EXT_HEADER_REQD
)

// Kinds of information in NBD_REP_INFO.
const (
	InfoExport      uint16 = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        uint16 = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription uint16 = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   uint16 = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Commands.
const (
	CmdRead        uint16 = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       uint16 = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        uint16 = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       uint16 = 3 // NBD_CMD_FLUSH
	CmdTrim        uint16 = 4 // NBD_CMD_TRIM
	CmdCache       uint16 = 5 // NBD_CMD_CACHE
	CmdWriteZeroes uint16 = 6 // NBD_CMD_WRITE_ZEROES
	CmdBlockStatus uint16 = 7 // NBD_CMD_BLOCK_STATUS
)

// Flags of commands.
const (
	CmdFlagFUA        uint16 = 1 << 0 // NBD_CMD_FLAG_FUA
	CmdFlagNoHole     uint16 = 1 << 1 // NBD_CMD_FLAG_NO_HOLE
	CmdFlagDF         uint16 = 1 << 2 // NBD_CMD_FLAG_DF
	CmdFlagReqOne     uint16 = 1 << 3 // NBD_CMD_FLAG_REQ_ONE
	CmdFlagFastZero   uint16 = 1 << 4 // NBD_CMD_FLAG_FAST_ZERO
	CmdFlagPayloadLen uint16 = 1 << 5 // NBD_CMD_FLAG_PAYLOAD_LEN
)

// Chunks of structured and extended replies.
const (
	ChunkFlagDone uint16 = 1 << 0 // NBD_REPLY_FLAG_DONE

	ChunkNone           uint16 = 0       // NBD_REPLY_TYPE_NONE
	ChunkOffsetData     uint16 = 1       // NBD_REPLY_TYPE_OFFSET_DATA
	ChunkOffsetHole     uint16 = 2       // NBD_REPLY_TYPE_OFFSET_HOLE
	ChunkBlockStatus    uint16 = 5       // NBD_REPLY_TYPE_BLOCK_STATUS
	ChunkBlockStatusExt uint16 = 6       // NBD_REPLY_TYPE_BLOCK_STATUS_EXT
	chunkErr            uint16 = 1 << 15 // all error types have it
	ChunkError          uint16 = chunkErr | 1
	ChunkErrorOffset    uint16 = chunkErr | 2
)

// Error numbers of replies. They are Linux's, but fixed by the specification.
const (
	EPERM     uint32 = protocol.TRANSMISSION_ERROR_EPERM
	EIO       uint32 = 5
	ENOMEM    uint32 = 12
	EINVAL    uint32 = protocol.TRANSMISSION_ERROR_EINVAL
	ENOSPC    uint32 = 28
	EOVERFLOW uint32 = 75
	ENOTSUP   uint32 = 95
	ESHUTDOWN uint32 = 108
)

// ContextAllocation is the context that every export has, and its states.
const (
	ContextAllocation        = "base:allocation"
	StateHole         uint64 = 1 << 0 // NBD_STATE_HOLE: no space is allocated
	StateZero         uint64 = 1 << 1 // NBD_STATE_ZERO: reads as zeros
)

// IsErrorChunk says whether a chunk of this type reports an error.
func IsErrorChunk(typ uint16) bool { return typ&chunkErr != 0 }

// IsErrorReply says whether a reply to an option reports an error.
func IsErrorReply(typ uint32) bool { return typ&repErr != 0 }
