package host

import "time"

// Timing is everything that has to do with time, so that tests can scale it.
// Zero fields get the default.
type Timing struct {
	Start      time.Duration // launch to handshake; 30 s: a cold 60 MiB binary on a busy disk takes seconds
	Stop       time.Duration // orderly end, then SIGKILL; 10 s
	Ping       time.Duration // one health check; 5 s
	Health     time.Duration // between health checks; 10 s
	Misses     int           // health checks or calls in a row that may be missed; 3: a hung plugin is replaced within 45 s
	BackoffMin time.Duration // after the first failure; 1 s, doubled for each further one
	BackoffMax time.Duration // 1 min: an operator who repaired something waits no longer than that
	Stable     time.Duration // a process that lived so long starts the back-off anew; 1 min
	Debounce   time.Duration // quiet time after a change in the plugin directory; 500 ms
	Quick      time.Duration // deadline of Get, List, Health, ConfigSchema; 30 s (a vendor's API may be slow)
	Media      time.Duration // deadline of Configure, Discover, Attach, Detach, Fence; 5 min (a SAN rescans)
	Slow       time.Duration // deadline of Create, Delete, Expand; 20 min (mkfs of a large disk, a cloud's queue)
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Start, 30*time.Second)
	def(&t.Stop, 10*time.Second)
	def(&t.Ping, 5*time.Second)
	def(&t.Health, 10*time.Second)
	if t.Misses == 0 {
		t.Misses = 3
	}
	def(&t.BackoffMin, time.Second)
	def(&t.BackoffMax, time.Minute)
	def(&t.Stable, time.Minute)
	def(&t.Debounce, 500*time.Millisecond)
	def(&t.Quick, 30*time.Second)
	def(&t.Media, 5*time.Minute)
	def(&t.Slow, 20*time.Minute)
	return t
}

const (
	// maxInFlight bounds calls per instance; more wait. Below the SDK's limit
	// of streams (128), which go-plugin's own streams share.
	maxInFlight = 64
	// maxInstances bounds what a configuration may start: at about 15 MiB each,
	// 64 processes are 1 GiB.
	maxInstances = 64
	// maxPluginSize bounds what is hashed for a pin: 1 GiB.
	maxPluginSize = 1 << 30
	// maxSaid is how much of a dying plugin's standard error is kept for the
	// error message.
	maxSaid = 2 << 10
	// maxRunDir leaves room in a socket's address (107 bytes) for what
	// go-plugin appends: "/plugin-dir" and "/plugin" with ten digits each.
	maxRunDir = 107 - len("/plugin-dir0123456789/plugin0123456789") - len("/sock")
	// memLimit and gcPercent keep an idle built-in near 15 MiB. The limit is
	// soft: a plugin that really needs more gets it, at some CPU.
	memLimit  = "48MiB"
	gcPercent = "50"
)
