// Package drivers is the contract of how an attached volume reaches the host.
//
// A Driver makes a block device appear for a Volume (drivers/nbd/nbdkernel:
// /dev/nbdN by netlink; drivers/fuse/fuseloop: one FUSE file per volume with a
// loop device on it) and finds it again after a restart of the agent.
// drivers/attach chooses between them.
//
// # Life of an attachment
//
//	Attach   persist intent ─ make ─ persist what was made ─ ... ─ StepReady
//	Release  the agent stops: requests taken are answered, the device stays,
//	         I/O on it waits in the kernel
//	Recover  the next agent goes on with it: requests that the kernel still
//	         holds are executed now, so it is called at REPLICATION 4.1.8 and
//	         no earlier
//	Detach   the device goes; refused while something uses it
//	Cleanup  undoes what any State describes, however far Attach got
//
// Worked example: the agent attaches v-1 by the loop driver. Persist receives
// {loop, StepIntent, mount /run/moraine/image/v-1}; the mount is made; Persist
// receives StepServing; loop 4 is bound; Persist receives {StepReady,
// /dev/loop4}. If the agent dies before the last one, nobody has been told of
// the device: the next agent calls Cleanup with what was persisted. If it dies
// later, the next agent calls Recover, and a container that writes to
// /dev/loop4 notices a pause.
//
// # Invariants
//
//  1. Before a step that outlives the process, Persist has returned nil for a
//     State that names what the step makes.
//  2. Only a StepReady state is recovered; everything earlier is undone.
//  3. A State of another boot describes nothing that exists, but a directory.
//  4. Detach, Release and Cleanup are idempotent.
//  5. No device in use is taken away unless the caller forces it.
package drivers
