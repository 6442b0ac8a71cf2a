package main

import "time"

// Time limits. All integration suites together stay below 20 minutes, so that
// `make test` with check and unit stays below 25 on 2 cores.
const (
	buildLimit = 10 * time.Minute // cold module and build cache
	stepLimit  = 12 * time.Minute // one step of check, cold
	unitLimit  = 15 * time.Minute // cold; warm it is under 3
	crashLimit = 20 * time.Minute
	killGrace  = 20 * time.Second // between the time-out of go test and the kill of its process group
)

// suite is a group of integration tests: the test functions of files with the
// build tag "integration" below its folders.
type suite struct {
	name  string
	about string
	under []string // folders, relative to the root; the first suite with a prefix of a package takes it
	limit time.Duration
}

// suites in the order in which they run: cheap and basic first.
var suites = []suite{
	{"store", "stores on real filesystems and devices", []string{"drivers/store", "drivers/vfs", "drivers/aio"}, 3 * time.Minute},
	{"backends", "backends and plugins with real loop devices and processes", []string{"backends", "plugins", "contrib/examples"}, 3 * time.Minute},
	{"nbd", "NBD engine against libnbd, nbdkit, qemu and fio", []string{"drivers/nbd", "contrib/interop/nbd"}, 4 * time.Minute},
	{"attach", "block devices, filesystems and agent restarts", []string{"drivers"}, 5 * time.Minute},
	{"agent", "the agent as a process, its API and command line", []string{"agent", "runtime", "contrib/interop/node"}, 6 * time.Minute},
	{"cluster", "several agents as one cluster", []string{"contrib/interop/cluster"}, 3 * time.Minute},
	{"docker", "a real Docker Engine", []string{"contrib/interop/docker"}, 10 * time.Minute},
	{"guest", "kernel nbd in a QEMU guest", []string{"contrib/interop/guest", "contrib/interop/qemu"}, 6 * time.Minute},
	{"other", "everything that no other suite takes", []string{""}, 5 * time.Minute},
}
