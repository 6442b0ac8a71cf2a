// Package hostmount makes, checks, mounts and grows filesystems on the host.
//
// Way of a mount: Probe the device → blank: Format; one of ours: Check → Mount
// → (Bind for a second path). Way back: Unmount, then the driver detaches.
//
// # Invariants
//
//  1. Format writes to a device only when it is blank or the caller says Force
//     (rule 10): no signature that blkid knows, and zeros where signatures lie.
//     A damaged or ambiguous signature is not blank.
//  2. A call may be repeated: what is mounted as asked stays, what is not
//     mounted is unmounted already.
//  3. Nothing waits longer than its context. What could not be waited for is
//     marked errdefs.ErrIndeterminate: it may still happen.
//  4. System calls that wait for the device below a file system are made by
//     child processes (child.go): the agent that serves the device can always
//     be killed.
//  5. Unmount takes no filesystem from its users unless told Lazy; who uses it
//     is in the error.
//
// # Goroutines
//
// Each program, child and system call that a dead device can block has a
// goroutine that ends with it; a caller whose context ends leaves it behind
// (invariant 3).
package hostmount
