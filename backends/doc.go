// Package backends is the contract between the agent and the media where bytes
// rest: local disks, cloud drives, a SAN. A backend offers drives; the agent
// puts one store into each and builds volumes from them. A backend never sees
// volume data and is not on the way of a write: once a drive is attached, I/O
// goes on while the backend is down (rule 8).
//
// # Life of a drive
//
// A backend is configured once per start and again when its configuration
// changes. Discover then looks at the media. What it finds is either a drive
// (it has an ID) or a candidate: a medium that could become a drive (blank) or
// must not be touched (refused, with the reason and what to do about it).
//
//	candidate --Create--> ready <--Attach / Detach--> attached to a node
//	(blank)                 |  \
//	                     Delete  medium lost: gone; medium broken: failed
//
// Worked example. Configured with paths = ["/mnt/a"], Discover returns one
// blank candidate with Source "/mnt/a". The agent chooses an ID and calls
// Create{ID, Source: "/mnt/a"}: the medium now carries its identity. A crash
// here costs nothing: the same Create again returns the same drive. Attach
// answers with Path "/mnt/a"; the agent writes its store files into that
// directory. After a reboot Discover returns the same ID, whatever the device
// is called now, and Attach is called again.
//
// A path that is blank today may have held a drive yesterday (a file system
// that is not mounted shows an empty directory). The agent therefore records
// the Source of each drive and does not Create on the source of a drive that
// is missing unless a person says so.
//
// # Invariants
//
//  1. Create and Delete are idempotent by the caller's ID. The same ID with
//     another spec is ErrAlreadyExists. Deleting an absent drive succeeds.
//  2. A medium that is not blank, and whose use nobody asked for by name, is
//     never formatted, adopted or written to (rule 10).
//  3. Two media that carry one identity are both refused, naming both; when one
//     of them is attached already, it goes on and the others are refused.
//  4. Attach and Detach are idempotent. Attachment.Path works when Attach
//     returns. Attaching to a second node while attached is ErrFailedPrecondition.
//  5. Delete of an attached drive is ErrFailedPrecondition: nothing is lost.
//  6. Configure changes no medium. A configuration that is refused leaves the
//     previous one in force. No value of it appears in an error or a log.
//  7. Two processes of one backend may overlap for a moment (an upgrade): what
//     matters is kept on the medium or at the vendor, not in memory.
//  8. Every method obeys its context and may be called concurrently. Info never
//     waits for another call.
//
// Errors carry a class of plugins/errdefs; a call whose outcome is unknown is
// also errdefs.ErrIndeterminate.
//
// Package backendtest is the suite that every implementation passes, directly
// and over a real plugin connection.
package backends
