//go:build integration

package cluster

import (
	"crypto/tls"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// joined makes a node of the cluster of by.
func joined(t *testing.T, name string, by *agent) *agent {
	t.Helper()
	return newAgent(t, name, by, by.must("node", "token", "create")).up()
}

// three starts a cluster of three agents with three copies of the store.
func three(t *testing.T) []*agent {
	t.Helper()
	a := newAgent(t, "a", nil, "").up()
	all := []*agent{a, joined(t, "b", a), joined(t, "c", a)}
	for _, x := range all {
		x.sees(all...)
		x.members(3)
	}
	return all
}

// Goal: three agents are one cluster; each is killed and comes back while the
// others go on; all are killed at once and come back; the token's file is not
// needed any more.
func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	all := three(t)
	for i, x := range all {
		x.kill()
		other := all[(i+1)%3]
		until(t, "the others go on", func() error {
			_, err := other.cli("node", "token", "create", "--description", "while "+x.name+" is away")
			return err
		})
		x.token("")
		x.up().sees(all...)
	}
	for _, x := range all {
		x.kill()
	}
	for _, x := range all {
		x.launch()
	}
	for _, x := range all {
		x.ready()
		x.sees(all...)
		if out := x.must("node", "token", "list"); strings.Count(out, "is away") < 3 {
			t.Errorf("%s has lost what was written: %s", x.name, out)
		}
	}
	for _, x := range all { // in order, too
		x.stop()
		x.up()
	}
	all[0].sees(all...)
}

// Goal: who has no good token, or a name that is taken, stays outside and is
// told why; who was removed stays outside.
func TestRefused(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "a", nil, "").up()
	used := a.must("node", "token", "create")
	b := newAgent(t, "b", a, used).up()
	foreign := newAgent(t, "foreign", nil, "").up()
	expired := a.must("node", "token", "create", "--ttl", "1s")
	time.Sleep(1100 * time.Millisecond)
	for _, tt := range []struct{ what, name, token, want string }{
		{"no token", "n", "", "a token is needed"},
		{"garbage", "n", "hello", "four parts"},
		{"used token", "n", used, "has used it"},
		{"expired token", "n", expired, "has expired"},
		{"token of another cluster", "n", foreign.must("node", "token", "create"), "not of the cluster that the token is for"},
		{"token of a person", "n", a.must("token", "create", "--role", "admin"), "it is not for this"},
		{"name taken", "b", a.must("node", "token", "create"), "choose another name"},
	} {
		if got := newAgent(t, tt.name, a, tt.token).refused(); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q is not in: %s", tt.what, tt.want, got)
		}
	}
	a.sees(a, b)

	if out, err := a.cli("node", "remove", "b"); err == nil || !strings.Contains(err.Error(), "its agent runs") {
		t.Errorf("removed a running node: %s, %v", out, err)
	}
	b.stop()
	until(t, "b is removed", func() error { _, err := a.cli("node", "remove", "b"); return err })
	if got := b.refused(); !strings.Contains(got, "was removed") {
		t.Errorf("a removed node came back: %s", got)
	}
	joined(t, "b", a)
}

// Goal: over the network a person does what the token's role allows; an agent
// of another cluster, or nobody in particular, does nothing.
func TestOverTheNetwork(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "a", nil, "").up()
	foreign := newAgent(t, "foreign", nil, "").up()
	call := func(token string, args ...string) error {
		_, err := cli([]string{"MORAINE_ADDRESS=https://" + a.address, "MORAINE_TOKEN=" + token}, args...)
		return err
	}
	reader, admin := a.must("token", "create", "--role", "reader"), a.must("token", "create", "--role", "admin")
	for _, tt := range []struct {
		token, want string // "": allowed
		args        []string
	}{
		{reader, "", []string{"node", "list"}},
		{reader, "needs operator", []string{"volume", "create", "v"}},
		{reader, "needs admin", []string{"token", "list"}},
		{admin, "", []string{"token", "list"}},
		{admin, "", []string{"node", "drain", "a"}},
		{foreign.must("token", "create", "--role", "admin"), "not of the cluster that the token is for", []string{"node", "list"}},
		{a.must("node", "token", "create"), "it is not for this", []string{"node", "list"}},
		{"", "MORAINE_TOKEN", []string{"node", "list"}},
	} {
		err := call(tt.token, tt.args...)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.args, err, tt.want)
		}
	}
	if out := a.must("node", "list"); !strings.Contains(out, "draining") {
		t.Errorf("drained over the network: %s", out)
	}
	id := strings.Split(reader, ".")[1]
	a.must("token", "revoke", id[:12])
	if err := call(reader, "node", "list"); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked token: %v", err)
	}

	host := strings.TrimSuffix(a.address, ":7420")
	for _, port := range []string{"7420", "7423", "7424"} {
		if answers(t, host+":"+port, foreign) {
			t.Errorf("port %s answers an agent of another cluster", port)
		}
	}
	for _, port := range []string{"7420", "7424"} { // those that speak HTTP/2
		if !answers(t, host+":"+port, a) {
			t.Errorf("port %s does not answer an agent of its cluster", port)
		}
	}
	for _, f := range []string{"identity/node.key", "identity/ca.key", "contacts.json"} {
		st, err := os.Stat(a.dir + "/data/" + f)
		if f == "contacts.json" && os.IsNotExist(err) {
			continue // one node needs none
		}
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	if strings.Contains(a.said(), strings.Split(admin, ".")[2]) {
		t.Error("the log has a token's secret")
	}
}

// answers says whether a server speaks to somebody with that agent's certificate.
func answers(t *testing.T, address string, as *agent) bool {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(as.dir+"/data/identity/node.crt", as.dir+"/data/identity/node.key")
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	_, err = io.ReadFull(c, make([]byte, 9)) // the server's settings
	return err == nil
}
