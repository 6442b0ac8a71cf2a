package config

const (
	// fileBytesMax bounds one file: 300 backends of 800 bytes.
	fileBytesMax = 256 << 10

	// filesMax bounds the files of one configuration.
	filesMax = 256

	// nestingMax bounds open brackets: the deepest that makes sense is 4.
	nestingMax = 64

	// diagnosticsMax bounds what is reported; who has that many mistakes reads
	// the first ones.
	diagnosticsMax = 100

	// socketPathMax is the kernel's limit for the path of a unix socket
	// (sun_path is 108 bytes with the zero at its end).
	socketPathMax = 107

	// runDirMax leaves room in socketPathMax for the longest socket below
	// run_dir: "/volumes/", 32 digits, ".sock" are 46 bytes.
	runDirMax = 60

	// labelsMax and labelBytesMax bound the labels of a node.
	labelsMax     = 64
	labelBytesMax = 256
)
