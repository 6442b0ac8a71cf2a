// Package node tests the whole agent, as the process that users run: with real
// NBD clients, through its command line, and under the faults of process, configuration and
// disk that a single node must survive. The tests need root, loop devices and
// FUSE, and the programs that contrib/packages.sh installs.
//
// Each test has agents of its own, each below a directory of its own, and takes
// down what is left of them. Nothing waits without end: every program runs with
// a deadline, and one that does not even die (it sits on a dead mount) is left
// behind, and the test fails.
package node
