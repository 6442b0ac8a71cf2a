package membership

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/moraine-storage/moraine/agent/cluster/etcdkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
)

func nid(i int) records.ID { return records.ID(fmt.Sprintf("%032x", i+1)) }

// picture makes a view from words, one per node: s server, c client; a alive, q
// quiet, d dead; v voter, l learner, u learner that has not started, - no
// member; a plus sign when it is assigned; @ZONE. The first node leads.
func picture(words string) view {
	v := view{assigned: map[records.ID]bool{}}
	for i, w := range strings.Fields(words) {
		w, zone, _ := strings.Cut(w, "@")
		n := nodeView{id: nid(i), server: w[0] == 's', alive: w[1] == 'a', dead: w[1] == 'd', zone: zone, peerURL: fmt.Sprintf("https://10.0.0.%d:7423", i)}
		if w[2] != '-' {
			m := etcdkv.Member{ID: uint64(i + 1), Name: string(n.id), Learner: w[2] != 'v', PeerURLs: []string{n.peerURL}}
			if w[2] == 'u' {
				m.Name = ""
			}
			v.members = append(v.members, m)
		}
		if strings.HasSuffix(w, "+") {
			v.assigned[n.id] = true
		}
		if w[0] != 'x' { // x: its node was removed
			v.nodes = append(v.nodes, n)
		}
	}
	v.leader, v.self = nid(0), 1
	return v
}

func show(steps []step) string {
	var out []string
	for _, s := range steps {
		i := -1
		fmt.Sscanf(string(s.node), "%032x", &i)
		out = append(out, fmt.Sprintf("%v %d", s.kind, i-1))
	}
	return strings.Join(out, ", ")
}

// Goal: each situation has its next step.
func TestPlan(t *testing.T) {
	for _, tt := range []struct{ name, view, want string }{
		{"one node", "sav+", ""},
		{"the first member has no record yet", "sav", "assign 0"},
		{"two nodes stay at one vote", "sav+ sa-", ""},
		{"clients do not count", "sav+ sa- ca- ca-", ""},
		{"three", "sav+ sa- sa-", "assign 1, assign 2"},
		{"three, assigned", "sav+ sa-+ sa-+", ""},
		{"one of two has caught up", "sav+ sal+ sa-+", ""},
		{"one of two has started", "sav+ sal+ sau+", ""},
		{"both have started", "sav+ sal+ sal+", "promote 1, promote 2"},
		{"a vote was lost on the way", "sav+ sav+ sal+", "promote 2"},
		{"three of three", "sav+ sav+ sav+", ""},
		{"four", "sav+ sav+ sav+ sa-", ""},
		{"five", "sav+ sav+ sav+ sa- sa-", "assign 3, assign 4"},
		{"five of seven", "sav+ sav+ sav+ sav+ sav+ sa- sa-", ""},
		{"zones", "sav+@a sa-@a sa-@b sa-@c sa-@c sa-@a sa-@a", "assign 2, assign 3, assign 1, assign 4"},
		{"three, one does not live", "sav+ sa- sq-", ""},
		{"five, one does not live", "sav+ sa- sa- sa- sq-", "assign 1, assign 2"},
		{"quiet voter", "sav+ sav+ sqv+ sa-", ""},
		{"dead voter and a spare", "sav+ sav+ sdv+ sa-", "assign 3"},
		{"dead voter, the spare starts", "sav+ sav+ sdv+ sau+", "remove 2"},
		{"dead voter, the spare stands ready", "sav+ sav+ sdv+ sal+", "remove 2"},
		{"dead voter removed", "sav+ sav+ sd- sal+", "promote 3"},
		{"dead voter, no spare", "sav+ sav+ sdv+", ""},
		{"dead learner", "sav+ sal+ sdl+", "remove 2"},
		{"assigned, dead before it came", "sav+ sal+ sd-+ sa-", "unassign 2"},
		{"node removed", "sav+ sav+ xav+", "remove 2"},
		{"two left of three", "sav+ sav+", "remove 1"},
		{"two left of three, one dead", "sav+ sdv+", "remove 1"},
		{"leader stays", "sav+ sav+ sav+ sav+ xav+", "remove 4"},
		{"four left of five", "sav+ sav+ sdv+ sav+", "remove 2"},
		{"its own node was removed", "xav+ sav+ sav+ sav+", ""},
		{"the last member is never removed", "xav+", ""},
	} {
		if got := show(plan(picture(tt.view))); got != tt.want {
			t.Errorf("%s (%s): %q, want %q", tt.name, tt.view, got, tt.want)
		}
	}
}

// Goal: from any sequence of joins, deaths, returns and removals the plan comes
// to rest, with the right number of votes when all live, without ever removing
// the leader or going below a majority that lives.
func TestPlanComesToRest(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		v := picture("sav+")
		next := 1
		for range 12 {
			switch r.IntN(4) {
			case 0, 1:
				v.nodes = append(v.nodes, nodeView{id: nid(next), server: r.IntN(4) > 0, alive: true, zone: string(rune('a' + r.IntN(3))), peerURL: fmt.Sprint("https://10.0.0.", next, ":7423")})
				next++
			case 2:
				if i := r.IntN(len(v.nodes)); v.nodes[i].id != v.leader && living(v, v.nodes[i].id) {
					v.nodes[i].alive, v.nodes[i].dead = false, r.IntN(2) == 0
				}
			case 3:
				if i := r.IntN(len(v.nodes)); v.nodes[i].id != v.leader && living(v, v.nodes[i].id) {
					v.nodes = slices.Delete(v.nodes, i, i+1)
				}
			}
			rest(t, seed, &v)
		}
		for i := range v.nodes {
			v.nodes[i].alive, v.nodes[i].dead = true, false
		}
		rest(t, seed, &v)
		servers, voters := 0, 0
		for _, n := range v.nodes {
			if n.server {
				servers++
			}
		}
		for _, m := range v.members {
			if !m.Learner {
				voters++
			}
		}
		if voters != target(servers) || len(v.members) != voters {
			t.Errorf("seed %d: %d votes, %d members for %d servers", seed, voters, len(v.members), servers)
		}
	}
}

// living says whether the store has a majority without that node.
func living(v view, without records.ID) bool {
	voters, alive := 0, 0
	for _, m := range v.members {
		if m.Learner {
			continue
		}
		voters++
		if n, ok := v.owner(m); ok && n.alive && n.id != without {
			alive++
		}
	}
	return alive > voters/2
}

// rest carries steps out until there are none.
func rest(t *testing.T, seed uint64, v *view) {
	t.Helper()
	for round := 0; ; round++ {
		for _, n := range v.nodes { // nodes do as they are told
			has := slices.IndexFunc(v.members, func(m etcdkv.Member) bool { return m.Name == string(n.id) })
			if v.assigned[n.id] && has < 0 && n.alive {
				var i int
				fmt.Sscanf(string(n.id), "%032x", &i)
				v.members = append(v.members, etcdkv.Member{ID: uint64(i), Name: string(n.id), Learner: true})
			}
		}
		steps := plan(*v)
		if len(steps) == 0 {
			return
		}
		if round > 100 {
			t.Fatalf("seed %d: no rest: %v", seed, show(steps))
		}
		for _, s := range steps {
			i := slices.IndexFunc(v.members, func(m etcdkv.Member) bool { return m.ID == s.member })
			switch s.kind {
			case stepAssign:
				v.assigned[s.node] = true
			case stepUnassign:
				delete(v.assigned, s.node)
			case stepPromote:
				v.members[i].Learner = false
			case stepRemove:
				if s.member == v.self {
					t.Fatalf("seed %d: removes the leader", seed)
				}
				delete(v.assigned, s.node)
				v.members = slices.Delete(v.members, i, i+1)
			}
		}
		if !living(*v, "") {
			t.Fatalf("seed %d: no majority lives after %v", seed, show(steps))
		}
	}
}
