package memkv

import (
	"fmt"
	"strings"

	"github.com/moraine-storage/moraine/agent/cluster"
)

// Call names a kind of call in a Fault.
type Call string

// The calls that faults can hit.
const (
	CallAny       Call = ""
	CallGet       Call = "get"
	CallList      Call = "list"
	CallTxn       Call = "txn"
	CallWatch     Call = "watch" // Watch and Next
	CallGrant     Call = "grant"
	CallKeepAlive Call = "keepalive"
	CallRevoke    Call = "revoke"
)

// FaultKind says what goes wrong.
type FaultKind int

// The kinds of faults.
const (
	// Unreachable: the call does not happen and says so.
	Unreachable FaultKind = iota + 1
	// RequestLost: the call does not happen, but the caller cannot know that:
	// the error is indeterminate for calls that change something.
	RequestLost
	// AnswerLost: the call happens, and the caller cannot know that.
	AnswerLost
)

// String names the kind.
func (k FaultKind) String() string {
	switch k {
	case Unreachable:
		return "unreachable"
	case RequestLost:
		return "request lost"
	case AnswerLost:
		return "answer lost"
	}
	return "none"
}

// Fault is one rule; the first that matches a call decides.
type Fault struct {
	Kind   FaultKind
	Call   Call   // CallAny: every call
	Prefix string // of the key (of a transaction: of its first change); empty: all
	Skip   int    // how many matching calls it lets pass first
	Count  int    // how many calls it hits; 0: until Clear
}

// String prints the rule so that a failing test can be repeated.
func (f Fault) String() string {
	return fmt.Sprintf("%v call=%q prefix=%q skip=%d count=%d", f.Kind, f.Call, f.Prefix, f.Skip, f.Count)
}

// Inject adds a rule for this client. Watches that it hits end.
func (c *Client) Inject(f Fault) {
	c.mu.Lock()
	c.faults = append(c.faults, &f)
	c.mu.Unlock()
	c.s.wake()
}

// Clear removes all rules.
func (c *Client) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = nil
}

// faultLocked finds the rule for a call and uses it up.
func (c *Client) faultLocked(call Call, key string) FaultKind {
	for i, f := range c.faults {
		if (f.Call != CallAny && f.Call != call) || !strings.HasPrefix(key, f.Prefix) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Count > 0 {
			if f.Count--; f.Count == 0 {
				c.faults = append(c.faults[:i:i], c.faults[i+1:]...)
			}
		}
		return f.Kind
	}
	return 0
}

// lost is the error of a call whose outcome the caller cannot know.
func lost(call Call) error {
	switch call {
	case CallTxn, CallGrant, CallKeepAlive, CallRevoke:
		return cluster.ErrIndeterminate
	}
	return cluster.ErrUnavailable // a read has no outcome to wonder about
}

func (s *Store) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked()
}
