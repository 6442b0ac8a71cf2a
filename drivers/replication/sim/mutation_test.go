package sim

import (
	"os"
	"testing"

	"github.com/moraine-storage/moraine/drivers/replication"
)

// mutations are the changes of 0001 section 9 that must be noticed, each with
// a seed that is known to notice it.
var mutations = []struct {
	name string
	opt  Options
	seed uint64
}{
	{"no drain in PROMOTE", Options{Fault: FaultNoDrain}, 1},
	{"promised not synced", Options{Fault: FaultPromiseNotSynced}, 5},
	{"grant_end reset by PROMOTE", Options{Fault: FaultGrantReset}, 3},
	{"lease measured from the answer", Options{Mutation: replication.MutLeaseFromAnswer}, 70},
	{"lease checked before the read", Options{Mutation: replication.MutLeaseBeforeRead}, 3},
	{"reads unlocked", Options{Mutation: replication.MutReadsUnlocked}, 1},
	{"lock freed at acknowledgment", Options{Mutation: replication.MutUnlockAtAck}, 6},
	{"unknown outcome taken as failed", Options{Mutation: replication.MutUnknownFailed}, 8},
	{"loss_id ignored", Options{Mutation: replication.MutLossIgnored}, 20},
	{"dirty not synced", Options{Fault: FaultDirtyNotSynced}, 3},
	{"CLEAN without flush", Options{Mutation: replication.MutCleanNoFlush}, 1},
	{"CLEAN without lock", Options{Mutation: replication.MutCleanNoLock}, 1},
	{"CLEAN with a reused g", Options{Mutation: replication.MutCleanReusedG}, 1},
	{"device kept although active moved", Options{Mutation: replication.MutDeviceKept}, 82},
	{"writes sent into todo", Options{Mutation: replication.MutWriteIntoTodo}, 2},
	{"join without flush", Options{Mutation: replication.MutJoinNoFlush}, 52},
	{"freeze without hold", Options{Mutation: replication.MutFreezeNoHold}, 2},
	{"hole skipped in copy", Options{Mutation: replication.MutHoleSkipped}, 2},
	{"acknowledged before the removal is recorded", Options{Mutation: replication.MutAckBeforeRecord}, 1},
	{"no reconcile after attach", Options{Mutation: replication.MutNoReconcile}, 2},
	{"late change forgotten", Options{Mutation: replication.MutLateChangeForgot}, 124},
	{"PROMOTE of a resync does not drain", Options{Fault: FaultNoDrainSame}, 3},
	{"reads without leases", Options{Mutation: replication.MutReadsAtOnce}, 3},
	{"no gate number", Options{Fault: FaultNoGateNumber}, 57},
}

// Goal: the checkers see: every mutation is caught within 500 seeds. The known
// seed is tried first; with MORAINE_SIM_MUTATIONS it is not, and the first
// seed that catches is printed. A change of the core or of the simulator moves
// the seeds: then the search says which to write down.
func TestMutations(t *testing.T) {
	search := os.Getenv("MORAINE_SIM_MUTATIONS") != ""
	caught := func(t *testing.T, o Options, seed uint64) bool {
		o.Seed = seed
		r := Run(o)
		if r.Failure != "" {
			t.Logf("seed %d: %s", seed, r.Failure)
		}
		return r.Failure != ""
	}
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			if !search && caught(t, m.opt, m.seed) {
				return
			}
			for seed := uint64(1); seed <= 500; seed++ {
				if caught(t, m.opt, seed) {
					return
				}
			}
			t.Error("not noticed within 500 seeds")
		})
	}
}
