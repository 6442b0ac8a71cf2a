// Package volume is the life of volumes on a node: it implements api.Service
// over the cluster store's records, the drives of the node, the data path, and
// the drivers that make devices (contrib/design/0003, "the life of a volume").
//
// Invariants:
//  1. A volume's record changes only under the volume's lock of this node and
//     by compare-and-swap; a lost answer is settled before anything else is
//     done with the volume.
//  2. Whatever is changed in a replica is changed as its primary: the volume
//     is attached, if only for maintenance (0001, 1.4).
//  3. An attachment file exists from before the first session of an attachment
//     until its device is gone; it lists each session before that session's
//     record becomes active (0001, 4.1.4).
//  4. A replica is deleted only with a tombstone in the cluster store.
//  5. What the user was told exists is never rolled back.
//  6. While a device may be there that is not served, nothing but its recovery
//     makes this node primary of its volume (unsettled.go); a session in which
//     a device may not go on is never listed as one of its own.
//
// Files, in the order in which a volume meets them: spec.go, create.go,
// primary.go (attach algorithm), live.go (data path), attach.go, mount.go,
// export.go, snapshot.go, change.go, recover.go and unsettled.go (agent
// restart), delete in create.go; view.go, status.go and doctor.go show things.
//
// Goroutines: one per call of the API (its own); none of this package but the
// recovery at start, which Start waits for, what it tries again until Close,
// and the watcher of each attached device, which ends with it.
package volume
