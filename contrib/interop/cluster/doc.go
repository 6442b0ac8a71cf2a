// Package cluster tests several real agents as one cluster, each a process of
// its own with an address of its own on the loopback interface: bootstrap, join,
// kill and restart of each and of all, and those who may not come in.
package cluster
