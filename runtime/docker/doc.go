// Package docker is Docker's volume plugin: it answers the VolumeDriver calls
// of a Docker Engine on a unix socket and turns each into calls of the API.
// It decides nothing and keeps nothing on disk: who uses a volume is recorded
// in the volume itself, so that counts outlive the agent.
//
// # Life of a volume
//
// `docker volume create -d moraine -o size=20GiB pg` is Create, which makes the
// volume. `docker run -v pg:/data` is Mount(pg, ID): the first consumer
// attaches the volume, makes its filesystem if it is blank, checks it, mounts
// it; Docker binds the returned path into the container. When the container
// stops, Unmount(pg, ID) drops the consumer; the last one unmounts and
// detaches. `docker volume rm pg` is Remove, refused while anybody uses the
// volume. Create, Mount, Unmount and Remove may be repeated.
//
// # Invariants
//
//  1. One use of a volume by Docker is one consumer "docker:ID" of the volume's
//     record; ID is Docker's name for the use. Docker mounts again under the
//     same ID while a container runs (docker cp) and unmounts once for each: the
//     second use is "docker:ID#2" and so on, and Unmount drops the newest.
//  2. A Mount that Docker repeats because the agent died before its answer is
//     one use, not two: Docker repeats for half a minute, so an ID found in the
//     record within retryWindow of the start, and not mounted by this process,
//     is taken as that. So is a Mount after an Unmount that failed.
//  3. A Mount whose caller has gone before the answer leaves no consumer: the
//     caller does not know that it would have to unmount.
//  4. Calls about one volume run one after the other. They come in from one
//     socket, and the counting in 1 reads before it writes.
//  5. Stopping leaves everything mounted: containers go on (rule 12).
//  6. A Docker Engine that is killed does not unmount what it had mounted; it
//     mounts again under the same IDs when its containers start. A use is taken
//     as forgotten only if an engine was started after it (Plugin.Activate) and
//     no mount namespace has the volume but the agent's own. Such a use is taken
//     over by a Mount under its ID, and dropped by Remove and by the last Unmount.
//
// What cannot be told stays in use: Remove then says who holds the volume, and
// `moraine volume unmount NAME --force` lets go.
//
// # Goroutines
//
//	name     owner           wakes on              owns
//	serve    Plugin (Start)  a connection          the listener
//	handler  net/http        a request             nothing; it takes the volume's lock
//
// Close ends both: it waits for calls that run, then closes connections.
package docker
