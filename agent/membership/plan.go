package membership

import (
	"cmp"
	"slices"

	"github.com/moraine-storage/moraine/agent/cluster/etcdkv"
	"github.com/moraine-storage/moraine/agent/cluster/records"
)

// view is what a plan is made from.
type view struct {
	nodes    []nodeView
	assigned map[records.ID]bool // nodes with a StoreMember record
	members  []etcdkv.Member
	leader   records.ID // the node whose member leads, and which plans
	self     uint64     // its member: never removed by itself
}

// nodeView is a node as the plan sees it.
type nodeView struct {
	id      records.ID
	server  bool   // can keep a copy, and others can reach it
	peerURL string // of its member
	zone    string
	alive   bool
	dead    bool // silent for long
}

// kind of a step.
type kind int

const (
	stepRemove   kind = iota + 1 // a member
	stepPromote                  // a learner
	stepAssign                   // a node shall be a member
	stepUnassign                 // it shall not
)

func (k kind) String() string {
	return [...]string{"nothing", "remove", "promote", "assign", "unassign"}[k]
}

// step is one change.
type step struct {
	kind   kind
	node   records.ID // "" for a member of no known node
	member uint64     // for remove and promote
	why    string
}

// target is how many votes a store of that many servers has. Two would lose
// the store with either of them; so one has it.
func target(servers int) int {
	switch {
	case servers >= 5:
		return 5
	case servers >= 3:
		return 3
	}
	return 1
}

// owner finds the node of a member: by name once it has started, by address
// before.
func (v view) owner(m etcdkv.Member) (nodeView, bool) {
	for _, n := range v.nodes {
		if m.Name == string(n.id) || m.Name == "" && n.peerURL != "" && slices.Contains(m.PeerURLs, n.peerURL) {
			return n, true
		}
	}
	return nodeView{}, false
}

// plan returns the steps that may be taken now, all of one kind: after them,
// look again.
func plan(v view) []step {
	servers, belongs := 0, false
	for _, n := range v.nodes {
		belongs = belongs || n.id == v.leader
		if n.server {
			servers++
		}
	}
	if !belongs {
		return nil // this node was removed and will notice: another shall lead
	}
	want := target(servers)
	if s := v.removals(want); len(s) > 0 {
		return s
	}
	if s := v.promotions(want); len(s) > 0 {
		return s
	}
	return v.assignments(want)
}

// removals: members of removed nodes; then one voter too many; then a dead
// voter for which a learner stands ready.
func (v view) removals(want int) []step {
	if len(v.members) == 1 {
		return nil
	}
	var voters []etcdkv.Member
	learners := 0
	for _, m := range v.members {
		if m.ID == v.self {
			voters = append(voters, m)
			continue
		}
		n, known := v.owner(m)
		switch {
		case !known && m.Name == "" && m.Learner:
			return []step{{stepRemove, "", m.ID, "it never started, and no node is at its address"}}
		case !known:
			return []step{{stepRemove, records.ID(m.Name), m.ID, "its node was removed"}}
		case m.Learner && n.dead:
			return []step{{stepRemove, n.id, m.ID, "its node does not answer"}}
		case m.Learner:
			learners++
		default:
			voters = append(voters, m)
		}
	}
	if len(voters) > want {
		m := slices.MinFunc(voters, func(a, b etcdkv.Member) int { return cmp.Compare(v.worth(a), v.worth(b)) })
		n, _ := v.owner(m)
		return []step{{stepRemove, n.id, m.ID, "fewer copies are enough"}}
	}
	if learners > 0 && len(voters) == want && want > 1 {
		for _, m := range voters {
			if n, _ := v.owner(m); n.dead {
				return []step{{stepRemove, n.id, m.ID, "its node does not answer, another stands ready"}}
			}
		}
	}
	return nil
}

// worth orders voters: the dead go first, the leader last.
func (v view) worth(m etcdkv.Member) int {
	n, _ := v.owner(m)
	switch {
	case n.id == v.leader:
		return 3
	case n.dead:
		return 0
	case !n.alive:
		return 1
	}
	return 2
}

// promotions: learners get their votes together, so that the number of votes is
// odd afterwards.
func (v view) promotions(want int) []step {
	var out []step
	voters := 0
	for _, m := range v.members {
		n, _ := v.owner(m)
		switch {
		case !m.Learner:
			voters++
		case m.Name != "" && n.alive:
			out = append(out, step{stepPromote, n.id, m.ID, "it has caught up"})
		}
	}
	n := min(len(out), max(want-voters, 0))
	if (voters+n)%2 == 0 {
		n--
	}
	return out[:max(n, 0)]
}

// assignments: new members where there are too few, in zones that have none
// first; and none where they are not wanted.
func (v view) assignments(want int) []step {
	have := map[records.ID]bool{}
	zones := map[string]int{}
	count := 0
	for _, n := range v.nodes {
		member := slices.ContainsFunc(v.members, func(m etcdkv.Member) bool { o, ok := v.owner(m); return ok && o.id == n.id })
		if member && !v.assigned[n.id] {
			// A member without a record: the first of the cluster.
			return []step{{stepAssign, n.id, 0, "it is a member"}}
		}
		if v.assigned[n.id] && !member && (n.dead || !n.server) {
			return []step{{stepUnassign, n.id, 0, "it does not become a member"}}
		}
		if member || v.assigned[n.id] {
			have[n.id] = true
			if !n.dead {
				count++
				zones[n.zone]++
			}
		}
	}
	if count > want {
		for _, n := range v.nodes {
			member := slices.ContainsFunc(v.members, func(m etcdkv.Member) bool { o, ok := v.owner(m); return ok && o.id == n.id })
			if v.assigned[n.id] && !member {
				return []step{{stepUnassign, n.id, 0, "there are enough members"}}
			}
		}
	}
	if want == 1 && len(v.members) > 0 {
		return nil // never two for the place of one
	}
	spare := slices.DeleteFunc(slices.Clone(v.nodes), func(n nodeView) bool { return !n.server || !n.alive || have[n.id] })
	for count+len(spare) < want { // not enough of them live: go as far as an odd number
		want -= 2
	}
	var out []step
	for count < want && len(spare) > 0 {
		best := slices.MinFunc(spare, func(a, b nodeView) int {
			return cmp.Or(cmp.Compare(zones[a.zone], zones[b.zone]), cmp.Compare(a.id, b.id))
		})
		spare = slices.DeleteFunc(spare, func(n nodeView) bool { return n.id == best.id })
		zones[best.zone]++
		count++
		out = append(out, step{stepAssign, best.id, 0, "the store shall have more members"})
	}
	return out
}
