//go:build race

package session

// raceEnabled: the race detector allocates on its own.
const raceEnabled = true
