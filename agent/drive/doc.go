// Package drive turns what backends offer into open stores: it discovers
// drives, claims them in the cluster store, opens the store on each, watches
// their health, and gives them back in order.
//
// Invariants:
//  1. A store is opened only under a drive record that names this node, with
//     an open counter that the record has just been raised to by compare-and-
//     swap and that the drive has never seen (0001 section 2, DriveTwice).
//  2. A drive that once had a store is never formatted again: a store that is
//     missing or of another cluster is a failed drive, not a blank one
//     (rule 10).
//  3. A drive that fails takes nothing else with it: its volumes get errors,
//     the agent and the other drives go on.
//
// Goroutines: one monitor (owner: Manager; wakes every Options.Interval), and
// one for each drive whose I/O fails, while it does (Suspect); ended and
// waited for by Close.
package drive
