package replication

// Mutation breaks one rule of the core on purpose: the simulator must notice
// (0001 section 9). Production code leaves it zero.
type Mutation uint8

// The mutations of the core; those of the replica are in the simulator.
const (
	MutNone             Mutation = iota
	MutLeaseFromAnswer           // 4: lease measured from the answer
	MutLeaseBeforeRead           // 5: lease checked before the read only
	MutReadsUnlocked             // 6
	MutUnlockAtAck               // 7: lock freed at acknowledgment
	MutUnknownFailed             // 8: unknown outcome taken as failed
	MutNoAdvance                 // 9
	MutLossIgnored               // 10
	MutCleanNoFlush              // 12
	MutCleanNoLock               // 12
	MutCleanReusedG              // 12
	MutDeviceKept                // 13: device kept although active moved
	MutWriteIntoTodo             // 14
	MutJoinNoFlush               // 15
	MutFreezeNoHold              // 16
	MutHoleSkipped               // 17
	MutAckBeforeRecord           // acknowledges before the removal is recorded
	MutNoReconcile               // opens without a reconcile set
	MutLateChangeForgot          // an unknown change is forgotten once the record was read unchanged
	MutReadsAtOnce               // reads need no lease at all
)
