// Package docker holds the tests against a real Docker Engine: dockerd with
// its own directories and socket, containers from an image made of the host's
// static busybox and fio, and the real agent as its volume plugin.
//
// They need root, dockerd, fio and busybox-static (contrib/packages.sh test
// installs them), and are built with the tag "integration".
package docker
