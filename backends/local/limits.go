package local

import "time"

const (
	// minDevice: mkfs.xfs makes no file system below 300 MiB; about 80 MiB of
	// that are its log and headers, the rest leaves a drive above
	// backends.MinDriveSize.
	minDevice = 300 << 20
	// maxIdentity bounds the identity file; one is about 400 bytes.
	maxIdentity = 16 << 10
	// maxMedia bounds what patterns may match, and with it Discover's answer.
	maxMedia = 1024
	// reserve kept free on a drive's file system: 2 %, within these bounds. XFS
	// and ext4 get slow and fail allocations of metadata when completely full.
	reserveShare = 50
	reserveMin   = 16 << 20
	reserveMax   = 4 << 30
	// zeroEdge is read at the beginning and at the end of a medium that must
	// be blank: every signature of a file system, RAID, LVM or partition table
	// lies there. zeroSamples of zeroSample bytes are read in between: raw
	// database files and the like have none.
	zeroEdge    = 1 << 20
	zeroSamples = 30
	zeroSample  = 64 << 10
	// probeTime bounds one run of blkid: it reads a few blocks.
	probeTime = 30 * time.Second
	// maxLoopTries: another process may take the free loop device first.
	maxLoopTries = 32
)
