// Package host runs backend plugins for the agent: it finds, launches, checks,
// supervises, replaces and ends them. What the agent holds is an *Instance, a
// backends.Backend that stays valid while processes come and go behind it.
//
// # Where plugins are
//
// A built-in backend is the agent's own binary, started again with arguments
// that Options.Builtin gives (`moraine plugin serve NAME`): a cloud SDK that
// crashes or leaks takes no data path with it. An external one is an executable
// moraine-backend-NAME in Options.PluginDir; a built-in of the same name comes
// first. File and directory must belong to root or to
// the agent's user and not be writable by others: a plugin runs with the
// agent's rights. With Spec.SHA256 the file is hashed and executed through one
// descriptor, so that what was checked is what runs.
//
// # Invariants
//
//  1. A process serves calls only after: go-plugin's handshake (cookie, protocol
//     version, mutual TLS), Info with the expected name and a contract version
//     that the agent speaks, ConfigSchema, and Configure without an error.
//  2. Each call has a deadline. A call that cannot reach a process fails with
//     ErrUnavailable at once; one that was under way when the process died or
//     went silent is ErrUnavailable and ErrIndeterminate. Nothing is retried.
//  3. A process that misses Timing.Misses health checks, or lets as many calls
//     in a row run into the host's deadline, is killed and replaced.
//  4. A new file or configuration takes over only when the new process (or
//     Configure) has succeeded; otherwise the old one goes on, and the error is
//     in Status.
//  5. The plugin inherits neither the agent's environment nor its descriptors,
//     except a pipe that ends when the agent does (sdk.LifelineEnv).
//  6. A plugin's process group is ended as a whole, so that no mkfs of a killed
//     plugin goes on writing.
//
// # Goroutines
//
//	name        owner     wakes on                                  owns
//	watch       Host      fsnotify events, debounce timer           pending file names
//	supervise   Instance  exit, health tick, file change, commands  the current process, back-off
//	drain       Instance  the old process has no calls, or time-out one replaced process
//	reap        runner    the child's exit                          the child's exit status, its pipes
//
// go-plugin adds its own per process; they end with it.
package host
