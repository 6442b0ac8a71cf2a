package block

// reapBatch is how many completions one Reap of Sync takes: the depth that
// one caller's goroutines commonly reach; more are taken by another call.
const reapBatch = 64
