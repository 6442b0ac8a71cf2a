// Package records keeps the typed records of a cluster over a cluster.KV:
// nodes and their lives, drives, volumes, tombstones, operations, tokens. The
// messages are in records/v1.
//
// A record is read with its revision (Versioned), changed in place, and written
// back if nobody else has changed it since (Update), so that fields this agent
// does not know survive. Several changes can be one transaction:
//
//	v, err := st.Volumes.Get(ctx, id)
//	v.Record.State = recordsv1.VolumeState_VOLUME_DELETING
//	_, err = st.Volumes.Update(ctx, v)             // ErrAborted: read again, decide again
//
//	_, err = st.Commit(ctx, st.Volumes.Deleting(v), st.Tombstones.Creating(t1), st.Tombstones.Creating(t2))
//
// Invariants
//
//  1. Names are unique: a name key is made and deleted in the transaction that
//     makes and deletes its record, and a record's name never changes.
//  2. A record is written only at the revision it was read at.
//  3. A record whose oldest_reader is newer than FormatVersion is refused and
//     never written over (ErrNewerFormat).
//  4. Every change of a volume carries a new attempt. After an indeterminate
//     answer Settle tells by it whether the change was made, and makes sure that
//     it will not be made later.
//
// Goroutines: none.
//
// Format, one key each; ID is 32 lower-case hex digits:
//
//	cluster            Cluster
//	node/ID            Node             node-name/NAME    ID of the node
//	life/NODE-ID       Life, leased
//	drive/ID           Drive
//	volume/ID          Volume           volume-name/NAME  ID of the volume
//	tombstone/ID       Tombstone
//	operation/ID       Operation
//	removed-node/ID    RemovedNode
//	store-member/ID    StoreMember; ID of the node
//	token/ID           Token
package records
